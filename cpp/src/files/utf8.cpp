#include "files/utf8.hpp"

#include <cstdio>

namespace trtprune::files {

namespace {

// The smallest and largest second byte of a sequence with this first one, see table 3-7 of the Unicode standard.
struct SecondByte {
    std::uint8_t low = 0x80;
    std::uint8_t high = 0xBF;
};

SecondByte second_byte(std::uint8_t first) {
    if (first == 0xE0) return {0xA0, 0xBF};
    if (first == 0xED) return {0x80, 0x9F};
    if (first == 0xF0) return {0x90, 0xBF};
    if (first == 0xF4) return {0x80, 0x8F};
    return {};
}

std::size_t length_of(std::uint8_t first) {
    if (first < 0x80) return 1;
    if (first >= 0xC2 && first <= 0xDF) return 2;
    if (first >= 0xE0 && first <= 0xEF) return 3;
    return first >= 0xF0 && first <= 0xF4 ? 4 : 0;
}

// The number of bytes of a sequence that are well-formed: its length, or where it breaks.
std::size_t good_bytes(std::string_view text, std::size_t length) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
    const SecondByte second = second_byte(byte(0));
    for (std::size_t i = 1; i < length; ++i) {
        const std::uint8_t low = i == 1 ? second.low : 0x80;
        const std::uint8_t high = i == 1 ? second.high : 0xBF;
        if (i == text.size() || byte(i) < low || byte(i) > high) return i;
    }
    return length;
}

}  // namespace

std::size_t utf8_sequence(std::string_view text, std::uint32_t& code) {
    const std::uint8_t first = static_cast<std::uint8_t>(text[0]);
    const std::size_t length = length_of(first);
    if (length == 0 || good_bytes(text, length) < length) return 0;
    code = length == 1 ? first : first & (0xFFU >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) code = (code << 6) | (static_cast<std::uint8_t>(text[i]) & 0x3FU);
    return length;
}

void append_utf8(std::string& text, std::uint32_t code) {
    const auto add = [&](std::uint32_t byte) { text += static_cast<char>(static_cast<std::uint8_t>(byte)); };
    if (code < 0x80) {
        add(code);
        return;
    }
    if (code < 0x800) {
        add(0xC0 | (code >> 6));
    } else if (code < 0x10000) {
        add(0xE0 | (code >> 12));
        add(0x80 | ((code >> 6) & 0x3F));
    } else {
        add(0xF0 | (code >> 18));
        add(0x80 | ((code >> 12) & 0x3F));
        add(0x80 | ((code >> 6) & 0x3F));
    }
    add(0x80 | (code & 0x3F));
}

std::string utf8_fault(std::string_view text) {
    std::size_t at = 0;
    while (at < text.size()) {
        std::uint32_t code = 0;
        const std::size_t length = utf8_sequence(text.substr(at), code);
        if (length == 0) break;
        at += length;
    }
    if (at == text.size()) return {};
    const std::string_view rest = text.substr(at);
    const std::size_t length = length_of(static_cast<std::uint8_t>(rest[0]));
    const std::size_t good = length == 0 ? 1 : good_bytes(rest, length);
    const char* reason = length == 0           ? "invalid start byte"
                         : good == rest.size() ? "unexpected end of data"
                                               : "invalid continuation byte";
    char buffer[128];
    if (good == 1) {
        std::snprintf(buffer, sizeof buffer, "'utf-8' codec can't decode byte 0x%02x in position %zu: %s",
                      static_cast<unsigned>(static_cast<std::uint8_t>(rest[0])), at, reason);
    } else {
        std::snprintf(buffer, sizeof buffer, "'utf-8' codec can't decode bytes in position %zu-%zu: %s", at,
                      at + good - 1, reason);
    }
    return buffer;
}

}  // namespace trtprune::files
