#include "files/shown.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>

namespace trtprune::files {

namespace {

constexpr int max_level = 3;
constexpr std::size_t max_list = 8;
constexpr std::size_t max_dict = 4;
constexpr std::size_t max_string = 120;
constexpr std::uint32_t raw_byte = 0x80000000U;  // marks a byte that is not UTF-8

// Code points of a text; bytes that are not UTF-8 keep their value, marked.
std::u32string code_points(std::string_view text) {
    std::u32string codes;
    for (std::size_t i = 0; i < text.size();) {
        const auto byte = [&](std::size_t k) { return static_cast<std::uint8_t>(text[k]); };
        const std::uint32_t first = byte(i);
        const std::size_t length = first < 0x80 ? 1 : first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : first >= 0xC2 ? 2 : 0;
        std::uint32_t code = length == 1 ? first : first & (0xFFU >> (length + 1));
        bool whole = length != 0 && first < 0xF5 && i + length <= text.size();
        for (std::size_t k = 1; whole && k < length; ++k) {
            whole = (byte(i + k) & 0xC0U) == 0x80;
            code = (code << 6) | (byte(i + k) & 0x3FU);
        }
        codes.push_back(static_cast<char32_t>(whole ? code : raw_byte | first));
        i += whole ? length : 1;
    }
    return codes;
}

void append_utf8(std::string& line, std::uint32_t code) {
    const auto add = [&](std::uint32_t byte) { line += static_cast<char>(static_cast<std::uint8_t>(byte)); };
    if (code < 0x80) {
        add(code);
    } else if (code < 0x800) {
        add(0xC0U | (code >> 6));
        add(0x80U | (code & 0x3FU));
    } else if (code < 0x10000) {
        add(0xE0U | (code >> 12));
        add(0x80U | ((code >> 6) & 0x3FU));
        add(0x80U | (code & 0x3FU));
    } else {
        add(0xF0U | (code >> 18));
        add(0x80U | ((code >> 12) & 0x3FU));
        add(0x80U | ((code >> 6) & 0x3FU));
        add(0x80U | (code & 0x3FU));
    }
}

// White space beyond ASCII and controls, which `repr` escapes; what else cannot be printed is escaped by Error.
bool is_escaped(std::uint32_t code) {
    return code < 0x20 || (code >= 0x7F && code <= 0xA0) || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
           code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

std::u32string repr_codes(const std::u32string& codes) {
    const bool single = codes.find(U'\'') != std::u32string::npos;
    const char32_t quote = single && codes.find(U'"') == std::u32string::npos ? U'"' : U'\'';
    std::u32string line(1, quote);
    for (const char32_t c : codes) {
        const auto code = static_cast<std::uint32_t>(c);
        char buffer[16];
        if (c == quote || c == U'\\') {
            line += U'\\';
            line += c;
        } else if (c == U'\n' || c == U'\r' || c == U'\t') {
            line += U'\\';
            line += c == U'\n' ? U'n' : c == U'\r' ? U'r' : U't';
        } else if ((code & raw_byte) != 0 || is_escaped(code)) {
            const std::uint32_t value = code & ~raw_byte;
            std::snprintf(buffer, sizeof buffer, value <= 0xFF ? "\\x%02x" : "\\u%04x", static_cast<unsigned>(value));
            for (const char* p = buffer; *p != '\0'; ++p) line += static_cast<char32_t>(*p);
        } else {
            line += c;
        }
    }
    line += quote;
    return line;
}

std::string utf8(const std::u32string& codes) {
    std::string text;
    for (const char32_t c : codes) append_utf8(text, static_cast<std::uint32_t>(c));
    return text;
}

// A long text keeps its beginning and its end.
std::string shown_text(std::string_view text) {
    constexpr std::size_t head = (max_string - 3) / 2;
    constexpr std::size_t tail = max_string - 3 - head;
    const std::u32string codes = code_points(text);
    std::u32string line = repr_codes(codes.substr(0, max_string));
    if (line.size() > max_string) {
        line = repr_codes(codes.substr(0, head) + codes.substr(codes.size() - std::min(tail, codes.size())));
        line = line.substr(0, head) + U"..." + line.substr(line.size() - tail);
    }
    return utf8(line);
}

std::string shown_at(const nlohmann::json& value, int level);

std::string shown_list(const nlohmann::json& value, int level) {
    if (level <= 0 && !value.empty()) return "[...]";
    std::string line = "[";
    for (std::size_t i = 0; i < std::min(value.size(), max_list); ++i) {
        if (i != 0) line += ", ";
        line += shown_at(value[i], level - 1);
    }
    return line + (value.size() > max_list ? ", ...]" : "]");
}

std::string shown_object(const nlohmann::json& value, int level) {
    if (value.empty()) return "{}";
    if (level <= 0) return "{...}";
    std::string line = "{";
    std::size_t count = 0;
    for (auto item = value.begin(); item != value.end() && count < max_dict; ++item, ++count) {
        if (count != 0) line += ", ";
        line += shown_text(item.key()) + ": " + shown_at(item.value(), level - 1);
    }
    return line + (value.size() > max_dict ? ", ...}" : "}");
}

std::string shown_at(const nlohmann::json& value, int level) {
    switch (value.type()) {
        case nlohmann::json::value_t::boolean:
            return value.get<bool>() ? "True" : "False";
        case nlohmann::json::value_t::number_integer:
            return std::to_string(value.get<std::int64_t>());
        case nlohmann::json::value_t::number_unsigned:
            return std::to_string(value.get<std::uint64_t>());
        case nlohmann::json::value_t::number_float: {
            const double number = value.get<double>();
            if (std::isnan(number)) return "NaN";
            if (std::isinf(number)) return number < 0 ? "-Infinity" : "Infinity";
            return float_repr(number);
        }
        case nlohmann::json::value_t::string:
            return shown_text(value.get_ref<const std::string&>());
        case nlohmann::json::value_t::array:
            return shown_list(value, level);
        case nlohmann::json::value_t::object:
            return shown_object(value, level);
        default:
            return "None";
    }
}

}  // namespace

std::string shown(const nlohmann::json& value) {
    return shown_at(value, max_level);
}

std::string float_repr(double value) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
    char buffer[40];
    const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
    std::string form(buffer, end);
    const std::size_t e = form.find('e');
    const int exponent = std::stoi(form.substr(e + 1));
    if (exponent < -4 || exponent >= 16) return form;  // both write two digits of the exponent at least
    const std::string sign = form[0] == '-' ? "-" : "";
    std::string digits;
    for (const char c : form.substr(0, e)) {
        if (c >= '0' && c <= '9') digits += c;
    }
    if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
    const auto whole = static_cast<std::size_t>(exponent) + 1;
    if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
    return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace trtprune::files
