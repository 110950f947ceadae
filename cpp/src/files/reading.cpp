#include "files/reading.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace trtprune::files {

namespace {

std::string reason_of(int error) {
    return std::generic_category().message(error);
}

}  // namespace

RegularFile::RegularFile(const std::string& path) : descriptor_(-1), size_(0) {
    // O_NONBLOCK: opening a FIFO must not wait for a writer.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor_ < 0) throw ReadError(reason_of(errno));
    struct stat status {};
    const bool known = ::fstat(descriptor_, &status) == 0;
    if (!known || !S_ISREG(status.st_mode)) {
        ::close(descriptor_);
        throw ReadError("not a regular file");
    }
    size_ = status.st_size;
}

RegularFile::~RegularFile() {
    ::close(descriptor_);
}

std::size_t RegularFile::read(void* data, std::size_t size) {
    std::size_t total = 0;
    while (total < size) {
        const ssize_t count = ::read(descriptor_, static_cast<char*>(data) + total, size - total);
        if (count == 0) break;
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && errno == EAGAIN) throw ReadError("gives no data");  // a file of /proc that would block
        if (count < 0) throw ReadError(reason_of(errno));
        total += static_cast<std::size_t>(count);
    }
    return total;
}

std::optional<std::string> read_bounded(const std::string& path, std::size_t limit) {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0 && errno == ENOENT) {
        if (::lstat(path.c_str(), &status) == 0) throw ReadError("a symbolic link to nothing");
        return std::nullopt;
    }
    RegularFile file(path);
    std::string data;
    constexpr std::size_t block = 1 << 20;
    while (data.size() <= limit) {
        const std::size_t before = data.size();
        // One byte more than the size, so that an unchanged file ends in the first block.
        const std::size_t expected = file.size() < 0 ? block : static_cast<std::size_t>(file.size()) + 1;
        const std::size_t more = std::min(std::max(expected - std::min(expected, before), std::size_t{4096}), block);
        data.resize(before + more);
        const std::size_t count = file.read(data.data() + before, more);
        data.resize(before + count);
        if (count < more) break;
    }
    if (data.size() > limit) throw ReadError("larger than " + std::to_string(limit) + " bytes");
    return data;
}

}  // namespace trtprune::files
