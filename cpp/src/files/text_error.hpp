#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace trtprune::files {

/// A failure inside the library whose text may quote a hostile file, and so hold any byte: `what()` would end at a NUL.
class TextError : public std::runtime_error {
  public:
    explicit TextError(std::string text) : std::runtime_error(text), text_(std::move(text)) {}

    const std::string& text() const noexcept { return text_; }

  private:
    std::string text_;
};

}  // namespace trtprune::files
