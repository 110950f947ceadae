#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/unicode.hpp"

namespace trtprune::text {

/// A part of a text, bytes [start, end).
struct Place {
    std::size_t start, end;
};

/// A regular expression of a tokenizer.json: the part of Oniguruma's language that the patterns of tokenizers use.
///
/// Characters, classes with `\p{…}` `\s` `\w` `\d`, groups, `|`, greedy and lazy quantifiers, `(?=…)`, `(?!…)`,
/// `(?i:…)` of ASCII letters, `.` `^` `$` `\A` `\z`.  A program with an explicit stack runs it, in a number of steps
/// that is bounded by the length of the text.
class Pattern {
  public:
    /// \throws EngineDirError  naming what is not supported or wrong.
    ///
    /// \param expression  UTF-8.
    /// \param where       The file and what of it, for messages.
    static Pattern from_regex(std::string_view expression, const std::string& where);

    /// A text that stands for itself, UTF-8.
    static Pattern from_text(std::string_view text, const std::string& where);

    /// All matches from the left, apart from each other; an empty one does not follow another match directly.
    ///
    /// \throws InputError  if the search takes too many steps.
    std::vector<Place> find_all(std::string_view text) const;

    enum class Kind : std::uint8_t { set, loop, jump, split, look, not_look, line_start, line_end, start, end, match };

    /// A step of the program.
    struct Step {
        Kind kind;
        bool greedy = true;        ///< of a loop
        std::uint32_t set = 0;     ///< index of the characters of `set` and `loop`
        std::uint32_t first = 0;   ///< where to go on: `jump`, `split`, after `look`; the least count of a loop
        std::uint32_t second = 0;  ///< where to go on if that fails: `split`; the largest count of a loop
    };

  private:
    friend class PatternReader;
    class Run;

    std::vector<Step> steps_;
    std::vector<CharSet> sets_;
};

}  // namespace trtprune::text
