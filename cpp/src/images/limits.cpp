#include "images/limits.hpp"

#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <trtprune/error.hpp>

namespace trtprune::images {

namespace {

// Python's `int(text)`: white space around, a sign, digits with single underscores between; the nearest number that
// fits.  False for anything else.
bool parsed(std::string_view text, std::int64_t& value) {
    constexpr std::string_view space = " \t\n\v\f\r";
    const std::size_t begin = text.find_first_not_of(space);
    if (begin == std::string_view::npos) return false;
    text = text.substr(begin, text.find_last_not_of(space) - begin + 1);
    const bool negative = text[0] == '-';
    if (negative || text[0] == '+') text.remove_prefix(1);
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    std::int64_t found = 0;
    bool digit = false;  // whether the last character was one
    for (const char c : text) {
        if (c == '_' && digit) {
            digit = false;
            continue;
        }
        if (c < '0' || c > '9') return false;
        digit = true;
        found = found > (most - 9) / 10 ? most : found * 10 + (c - '0');
    }
    value = negative ? -found : found;
    return digit;
}

}  // namespace

std::int64_t max_pixels_from(std::int64_t value) {
    if (value == 0) {
        value = default_max_pixels;
        const char* text = std::getenv(max_pixels_variable);
        if (text != nullptr && *text != '\0' && !parsed(text, value)) {
            throw InputError(std::string(max_pixels_variable) + "=" + text + ": not a number", "width × height");
        }
    }
    if (value < 1) {
        throw InputError("max_pixels=" + std::to_string(value) +
                         ": must be at least 1: width × height of the largest picture");
    }
    return value;
}

}  // namespace trtprune::images
