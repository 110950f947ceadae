#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/info.hpp"

namespace trtprune::text {

/// One message.
struct Turn {
    std::string role;         ///< `system`, `user` or `assistant`
    std::string text;         ///< UTF-8
    std::int64_t images = 0;  ///< number of images before the text
};

/// A prompt's text, and the place of the last user turn's text in it, characters [start, end).
struct Rendered {
    std::u32string text;
    std::size_t start = 0, end = 0;
};

/// Longest prompt in characters.
constexpr std::size_t longest_prompt = 1 << 20;

/// Throws for a prompt that grows too long while it is written.
[[noreturn]] void too_long();

/// The prompt that a template's pieces write for turns: a system turn or none, then the user's and the assistant's,
/// the user's last.
///
/// \param turns  UTF-8 texts.
/// \throws InputError      if the template refuses these turns.
/// \throws EngineDirError  if it fails with them, or writes too much.
Rendered render(const TemplateInfo& pieces, const std::vector<Turn>& turns);

}  // namespace trtprune::text
