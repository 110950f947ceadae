#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace trtprune::files {

/// The length of the well-formed UTF-8 sequence at the beginning of a text that is not empty; 0 for none.
///
/// \param code  Its code point, an output.
std::size_t utf8_sequence(std::string_view text, std::uint32_t& code);

/// Appends a code point as UTF-8; a surrogate in the same form, which no reader of UTF-8 takes.
void append_utf8(std::string& text, std::uint32_t code);

/// What is wrong with a text as UTF-8, in the words of Python's decoder; empty if nothing is.
std::string utf8_fault(std::string_view text);

}  // namespace trtprune::files
