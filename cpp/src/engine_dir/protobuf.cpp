#include "engine_dir/protobuf.hpp"

namespace trtprune::engine_dir {

namespace {

enum Wire : std::uint32_t { wire_varint = 0, wire_64 = 1, wire_bytes = 2, wire_group = 3, wire_end = 4, wire_32 = 5 };

constexpr std::size_t longest_varint = 10;
constexpr std::size_t longest_tag = 5;

}  // namespace

std::uint64_t WireReader::varint(std::size_t longest) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < longest; ++i) {
        if (rest_.empty()) throw WireError();
        const std::uint8_t byte = static_cast<std::uint8_t>(rest_[0]);
        rest_.remove_prefix(1);
        // Bits beyond 64 are dropped.
        value |= std::uint64_t{byte & 0x7FU} << (7 * i);
        if ((byte & 0x80U) == 0) return value;
    }
    throw WireError();
}

void WireReader::skip(std::uint64_t size) {
    if (size > rest_.size()) throw WireError();
    rest_.remove_prefix(static_cast<std::size_t>(size));
}

WireField WireReader::field(std::uint64_t tag, int depth) {
    WireField found{static_cast<std::uint32_t>(tag >> 3), std::nullopt};
    if (found.number == 0 || tag > UINT32_MAX) throw WireError();
    switch (tag & 7U) {
        case wire_varint:
            varint(longest_varint);
            break;
        case wire_64:
            skip(8);
            break;
        case wire_32:
            skip(4);
            break;
        case wire_bytes: {
            const std::uint64_t size = varint(longest_tag);
            if (size > INT32_MAX || size > rest_.size()) throw WireError();
            found.content = rest_.substr(0, static_cast<std::size_t>(size));
            skip(size);
            break;
        }
        case wire_group:
            skip_group(found.number, depth - 1);
            break;
        default:
            throw WireError();
    }
    return found;
}

void WireReader::skip_group(std::uint32_t number, int depth) {
    if (depth < 0) throw WireError();
    while (true) {
        const std::uint64_t tag = varint(longest_tag);
        if ((tag & 7U) == wire_end) {
            if (tag >> 3 != number) throw WireError();
            return;
        }
        field(tag, depth);
    }
}

std::optional<WireField> WireReader::next() {
    if (rest_.empty()) return std::nullopt;
    return field(varint(longest_tag), depth_);
}

void WireReader::check_packed(std::string_view content, int width) {
    if (width > 0) {
        if (content.size() % static_cast<std::size_t>(width) != 0) throw WireError();
        return;
    }
    WireReader reader(content, 0);
    while (!reader.rest_.empty()) reader.varint(longest_varint);
}

}  // namespace trtprune::engine_dir
