#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace trtprune::files {

/// Text of an untrusted file as one printable line, as `trtprune.errors.one_line` makes it.
///
/// Runs of white space become one space; control characters and bytes that are not UTF-8 become escapes.  Characters
/// that Unicode has not assigned are printed, as a table of them is not worth its size.
///
/// \param text   UTF-8, or any bytes.
/// \param limit  Largest number of characters (code points); a longer line ends in "…".
std::string one_line(std::string_view text, std::size_t limit = 500);

/// A text in quotes, as Python's `repr` writes it.
///
/// \param limit  Characters (code points) that stay, with the quotes.
std::string quoted(std::string_view text, std::size_t limit = static_cast<std::size_t>(-1));

/// The first `limit` characters (code points) of a text.
std::string_view cut(std::string_view text, std::size_t limit);

/// The words between white space, as Python's `str.split` finds them.
std::vector<std::string_view> words(std::string_view text);

}  // namespace trtprune::files
