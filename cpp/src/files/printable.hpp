#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace trtprune::files {

/// Text of an untrusted file as one printable line, as `trtprune.errors.one_line` makes it.
///
/// Runs of white space become one space; control characters and bytes that are not UTF-8 become escapes.
///
/// \param text   UTF-8, or any bytes.
/// \param limit  Largest number of characters (code points); a longer line ends in "…".
std::string one_line(std::string_view text, std::size_t limit = 500);

}  // namespace trtprune::files
