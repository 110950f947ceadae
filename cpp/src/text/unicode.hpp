#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace trtprune::text {

/// First and last code points of runs, ascending and apart.
using Ranges = std::vector<std::pair<char32_t, char32_t>>;

/// A set of code points.
class CharSet {
  public:
    CharSet() = default;
    /// \param ranges   In any order; may overlap.
    /// \param negated  Whether all other code points are meant.
    explicit CharSet(Ranges ranges, bool negated = false);

    bool has(char32_t point) const {
        if (point < 128) return (ascii_[point >> 6] >> (point & 63) & 1) != 0;
        return search(point);
    }
    const Ranges& ranges() const noexcept { return ranges_; }

  private:
    bool search(char32_t point) const;

    Ranges ranges_;
    std::uint64_t ascii_[2] = {0, 0};
};

/// The code points of a general category (`Lu`) or of a group of them (`L`), as `\p{…}` has it; none if unknown.
///
/// \param name  Case, spaces, `-` and `_` do not matter.
std::optional<Ranges> category(std::string_view name);

Ranges space_ranges();  ///< `\s` of regular expressions
Ranges word_ranges();   ///< `\w`
Ranges digit_ranges();  ///< `\d`

bool is_rust_space(char32_t point);   ///< white space of normalizers and offsets
bool is_numeric(char32_t point);      ///< of the pre-tokenizer Digits
bool is_punctuation(char32_t point);  ///< of the pre-tokenizer Punctuation
bool is_regex_word(char32_t point);   ///< of added tokens that are single words
bool is_regex_space(char32_t point);  ///< of added tokens that take the white space beside them

/// Lower case of a character: one, or for U+0130 two.
std::u32string lowercase(char32_t point);

/// A character of a changed text, and how it came from the text before: it stands for a character there (0), is
/// inserted behind one (1), or stands for a character and as many following ones as the number is below 0.
struct Change {
    char32_t point;
    std::int64_t change;
};

/// A text in a normal form.
///
/// \param text        Its characters.
/// \param compatible  NFKC and NFKD instead of NFC and NFD.
/// \param composed    NFC and NFKC instead of NFD and NFKD.
std::vector<Change> normal_form(const std::u32string& text, bool compatible, bool composed);

}  // namespace trtprune::text
