#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace trtprune::text {

/// Whether bytes are UTF-8: no surrogates, no overlong forms, nothing above U+10FFFF.
bool is_utf8(std::string_view bytes);

/// Number of bytes of the character that begins with this byte of a UTF-8 text.
inline std::size_t char_length(char first) {
    const auto byte = static_cast<unsigned char>(first);
    return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

/// Whether a byte of a UTF-8 text begins a character.
inline bool begins_char(char byte) {
    return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
}

/// The character at a place of a UTF-8 text, at which one begins.
inline char32_t char_at(std::string_view text, std::size_t place) {
    const auto byte = [&](std::size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[place + i])); };
    const char32_t first = byte(0);
    if (first < 0x80) return first;
    if (first < 0xE0) return (first & 0x1F) << 6 | (byte(1) & 0x3F);
    if (first < 0xF0) return (first & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    return (first & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
}

/// The place before the character that ends at a place other than 0.
inline std::size_t before(std::string_view text, std::size_t place) {
    do --place;
    while (place > 0 && !begins_char(text[place]));
    return place;
}

/// Appends a character to a UTF-8 text.
void append(std::string& text, char32_t point);

/// A character as a UTF-8 text.
std::string to_utf8(char32_t point);

/// Number of characters of a UTF-8 text.
std::size_t count_chars(std::string_view text);

/// Bytes as UTF-8, each longest begin of a character that does not go on (Unicode's "maximal subpart") as U+FFFD.
std::string lossy(std::string_view bytes);

}  // namespace trtprune::text
