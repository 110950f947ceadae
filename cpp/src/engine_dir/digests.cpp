#include "engine_dir/digests.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "files/reading.hpp"
#include "files/sha256.hpp"

namespace trtprune::engine_dir {

namespace {

constexpr std::uint64_t block_bytes = 1 << 20;
constexpr std::uint64_t longest_header = 100'000'000;

// Hashes up to `size` further bytes of a file.
void hash_bytes(files::RegularFile& file, files::Sha256& digest, std::uint64_t size) {
    std::vector<char> block(std::min(size, block_bytes));
    while (size > 0) {
        const std::size_t count = file.read(block.data(), static_cast<std::size_t>(std::min(size, block_bytes)));
        if (count == 0) return;
        digest.update(block.data(), count);
        size -= count;
    }
}

}  // namespace

std::string digest_file(const std::string& path) {
    files::RegularFile file(path);
    files::Sha256 digest;
    hash_bytes(file, digest, UINT64_MAX);
    return "sha256:" + digest.hex();
}

std::string digest_weights(const std::string& path) {
    files::RegularFile file(path);
    files::Sha256 digest;
    std::array<std::uint8_t, 8> prefix{};
    const std::size_t count = file.read(prefix.data(), prefix.size());
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < count; ++i) length |= std::uint64_t{prefix[i]} << (8 * i);
    digest.update(prefix.data(), count);
    hash_bytes(file, digest, std::min(length, longest_header));
    digest.update(std::to_string(file.size()));
    return "sha256-header-size:" + digest.hex();
}

std::string digest_head(const std::string& path) {
    files::RegularFile file(path);
    files::Sha256 digest;
    hash_bytes(file, digest, block_bytes);
    digest.update(std::to_string(file.size()));
    return "sha256-head-size:" + digest.hex();
}

}  // namespace trtprune::engine_dir
