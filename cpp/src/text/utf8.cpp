#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

/// Bytes of the character at a place, or minus the bytes that are to be replaced together.
int measure(std::string_view bytes, std::size_t place) {
    const auto byte = [&](std::size_t i) {
        return place + i < bytes.size() ? static_cast<unsigned char>(bytes[place + i]) : 0U;
    };
    const unsigned first = byte(0);
    if (first < 0x80) return 1;
    if (first < 0xC2 || first > 0xF4) return -1;
    const int length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    // Not every second byte may follow: no overlong forms, no surrogates, nothing above U+10FFFF.
    const unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const unsigned high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (byte(1) < low || byte(1) > high) return -1;
    for (int i = 2; i < length; ++i) {
        if ((byte(static_cast<std::size_t>(i)) & 0xC0) != 0x80) return -i;
    }
    return length;
}

}  // namespace

bool is_utf8(std::string_view bytes) {
    std::size_t place = 0;
    while (place < bytes.size()) {
        const int length = measure(bytes, place);
        if (length < 0) return false;
        place += static_cast<std::size_t>(length);
    }
    return true;
}

void append(std::string& text, char32_t point) {
    const auto put = [&](char32_t byte) { text.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
    if (point < 0x80) {
        put(point);
    } else if (point < 0x800) {
        put(0xC0 | point >> 6);
        put(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
        put(0xE0 | point >> 12);
        put(0x80 | (point >> 6 & 0x3F));
        put(0x80 | (point & 0x3F));
    } else {
        put(0xF0 | point >> 18);
        put(0x80 | (point >> 12 & 0x3F));
        put(0x80 | (point >> 6 & 0x3F));
        put(0x80 | (point & 0x3F));
    }
}

std::string to_utf8(char32_t point) {
    std::string text;
    append(text, point);
    return text;
}

std::size_t count_chars(std::string_view text) {
    std::size_t count = 0;
    for (const char byte : text) count += begins_char(byte) ? 1 : 0;
    return count;
}

std::string lossy(std::string_view bytes) {
    std::string text;
    text.reserve(bytes.size());
    std::size_t place = 0;
    while (place < bytes.size()) {
        const int length = measure(bytes, place);
        const auto step = static_cast<std::size_t>(length < 0 ? -length : length);
        if (length < 0)
            text += "\xEF\xBF\xBD";
        else
            text += bytes.substr(place, step);
        place += step;
    }
    return text;
}

}  // namespace trtprune::text
