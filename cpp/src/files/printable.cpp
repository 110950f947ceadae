#include "files/printable.hpp"

#include <cstdint>
#include <cstdio>

namespace trtprune::files {

namespace {

// Length of the well-formed UTF-8 sequence at the beginning, 0 for none; its code point in `code`.
std::size_t sequence(std::string_view text, std::uint32_t& code) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
    const std::uint8_t first = byte(0);
    if (first < 0x80) {
        code = first;
        return 1;
    }
    const std::size_t length = first >= 0xF0 && first <= 0xF4 ? 4 : first >= 0xE0 ? 3 : first >= 0xC2 ? 2 : 0;
    if (length == 0 || first > 0xF4 || text.size() < length) return 0;
    code = first & (0xFFU >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0U) != 0x80) return 0;
        code = (code << 6) | (byte(i) & 0x3FU);
    }
    const bool least = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    return least || surrogate || code > 0x10FFFF ? 0 : length;
}

bool is_space(std::uint32_t code) {
    return code == ' ' || (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x1F) || code == 0x85 ||
           code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
           code == 0x202F || code == 0x205F || code == 0x3000;
}

// Controls and those format characters that can move the cursor or turn the direction of the text.
bool is_hidden(std::uint32_t code) {
    return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0xAD || (code >= 0x200B && code <= 0x200F) ||
           (code >= 0x202A && code <= 0x202E) || (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF ||
           (code >= 0xE000 && code <= 0xF8FF) || (code >= 0xFFF0 && code <= 0xFFFB) || code >= 0xE0000;
}

void append_escape(std::string& line, std::uint32_t code) {
    char buffer[16];
    const char* form = code <= 0xFF ? "\\x%02x" : code <= 0xFFFF ? "\\u%04x" : "\\U%08x";
    std::snprintf(buffer, sizeof buffer, form, static_cast<unsigned>(code));
    line += buffer;
}

}  // namespace

std::string one_line(std::string_view text, std::size_t limit) {
    std::string line;
    std::size_t count = 0;
    std::size_t last = 0;  // where the line is cut, if it becomes too long
    bool space = false;
    while (!text.empty() && count <= limit) {
        std::uint32_t code = 0;
        const std::size_t length = sequence(text, code);
        if (length != 0 && is_space(code)) {
            space = !line.empty();
            text.remove_prefix(length);
            continue;
        }
        if (count + 1 < limit) last = line.size();
        if (space) {
            line += ' ';
            ++count;
            if (count + 1 < limit) last = line.size();
            space = false;
        }
        const std::size_t before = line.size();
        if (length == 0) {
            append_escape(line, static_cast<std::uint8_t>(text[0]));
            count += line.size() - before;
            text.remove_prefix(1);
        } else if (is_hidden(code)) {
            append_escape(line, code);
            count += line.size() - before;
            text.remove_prefix(length);
        } else {
            line.append(text.substr(0, length));
            ++count;
            text.remove_prefix(length);
        }
        if (count < limit) last = line.size();
    }
    if (count > limit) {
        line.resize(last);
        while (!line.empty() && line.back() == ' ') line.pop_back();
        line += "…";
    }
    return line;
}

}  // namespace trtprune::files
