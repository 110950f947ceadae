#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

/// Whole numbers of 128 bits, for exact arithmetic with numbers of a file.
namespace trtprune::files {

__extension__ typedef __int128 Wide;

/// The number in decimal.
inline std::string wide_text(Wide number) {
    if (number >= INT64_MIN && number <= INT64_MAX) return std::to_string(static_cast<std::int64_t>(number));
    std::string text;
    for (Wide rest = number; rest != 0; rest /= 10) {
        const int digit = static_cast<int>(rest % 10);
        text += static_cast<char>('0' + (digit < 0 ? -digit : digit));
    }
    if (number < 0) text += '-';
    std::reverse(text.begin(), text.end());
    return text;
}

}  // namespace trtprune::files
