#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/pattern.hpp"
#include "text/unicode.hpp"

namespace trtprune::text {

/// A part of a text that a rule splits at, and whether it is a separator.
struct Cut {
    std::size_t start, end;
    bool match;
};

/// What becomes of the separators of a split.
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// A changed part of a text, which remembers for each byte the bytes of the text it stands for.
///
/// The arithmetic of places is that of Hugging Face `tokenizers` (`NormalizedString`, tokenizers 0.23), also where a
/// change leaves a character without a place of its own: places decide which tokens are the question.
class AlignedText {
  public:
    /// \param text  UTF-8.
    explicit AlignedText(std::string_view text);

    const std::string& text() const noexcept { return text_; }
    bool empty() const noexcept { return text_.empty(); }
    /// Where the part begins in the whole text.
    std::int64_t start() const noexcept { return start_; }

    /// The bytes of the whole text that bytes [start, end) of this one stand for.
    std::pair<std::int64_t, std::int64_t> original(std::size_t first, std::size_t last) const;

    /// A part of this text.
    AlignedText slice(std::size_t first, std::size_t last) const;

    /// The parts between and beside the cuts, which cover the text.
    std::vector<AlignedText> split(const std::vector<Cut>& cuts, Behavior behavior) const;

    /// Replaces the text.
    ///
    /// \param changes  The new characters.
    /// \param removed  Number of characters removed at the begin.
    void transform(const std::vector<Change>& changes, std::size_t removed = 0);

    /// Writes a text before the first character, if there is one.
    void prepend(std::string_view text);

    /// Replaces the cuts that are matches.
    void replace(const std::vector<Cut>& cuts, std::string_view content);

    /// Removes white space at the ends.
    void strip(bool left, bool right);

  private:
    AlignedText() = default;
    void transform_range(std::size_t first, std::size_t last, const std::vector<Change>& changes, std::size_t removed);

    std::string text_;
    std::vector<std::pair<std::int32_t, std::int32_t>> places_;  // of each byte, in the whole text
    std::int64_t start_ = 0, end_ = 0;                           // of the part in the whole text
};

/// The places of a pattern's matches and of the text between them.
std::vector<Cut> cuts_of(const Pattern& pattern, std::string_view text);

/// The places of single characters and of the text between them.
std::vector<Cut> cuts_of(const std::function<bool(char32_t)>& chosen, std::string_view text);

/// The characters of a UTF-8 text.
std::u32string characters(std::string_view text);

}  // namespace trtprune::text
