#pragma once

#include <cstdint>
#include <string>
#include <unordered_set>
#include <vector>

#include "text/tokenizer.hpp"

namespace trtprune::text {

/// Turns a growing list of ids into pieces of text whose concatenation is the decoded whole.
///
/// Bytes of an incomplete character, and an ending that may become a stop string, are held back.
class Detokenizer {
  public:
    /// \param stop  Texts that end the answer, UTF-8.
    /// \throws InputError  if one of them is empty.
    Detokenizer(Tokenizer tokenizer, std::vector<std::string> stop = {});

    /// Adds one id; returns the text that is now final.
    std::string add(std::int64_t token);

    /// The rest of the text, after the last id.
    std::string finish();

    /// The text so far, without the stop string; its end may still change.
    const std::string& text() const noexcept { return text_; }

    /// Whether a stop string ended the text.
    bool stopped() const noexcept { return stopped_; }

  private:
    std::string send(std::size_t end);

    Tokenizer tokenizer_;
    std::vector<std::string> stop_;
    std::unordered_set<std::int64_t> skipped_, bytes_;
    std::vector<std::int64_t> ids_;
    std::size_t loose_ = 0;  // byte tokens at the end
    std::size_t sent_ = 0;   // characters
    std::string text_;
    bool stopped_ = false;
};

}  // namespace trtprune::text
