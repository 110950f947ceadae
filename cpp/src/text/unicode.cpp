#include "text/unicode.hpp"

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "text/unicode_tables.hpp"

namespace trtprune::text {

namespace {

constexpr char32_t last_point = 0x10FFFF;
const char category_names[][3] = {"lu", "ll", "lt", "lm", "lo", "mn", "mc", "me", "nd", "nl",
                                  "no", "pc", "pd", "ps", "pe", "pi", "pf", "po", "sm", "sc",
                                  "sk", "so", "zs", "zl", "zp", "cc", "cf", "co", "cn", "cs"};

// Hangul syllables are computed: https://www.unicode.org/versions/Unicode9.0.0/ch03.pdf, section 3.12.
constexpr char32_t syllables = 0xAC00, leads = 0x1100, vowels = 0x1161, tails = 0x11A7;
constexpr char32_t lead_count = 19, vowel_count = 21, tail_count = 28, syllable_count = 11172;

bool in_runs(const std::uint32_t* runs, std::size_t count, char32_t point) {
    const auto place = static_cast<std::size_t>(std::upper_bound(runs, runs + count, point) - runs);
    // Behind the first code point of a run and not behind its last one, or at it.
    return place % 2 == 1 || (place > 0 && runs[place - 1] == point);
}

Ranges ranges_of(const std::uint32_t* runs, std::size_t count) {
    Ranges found;
    for (std::size_t i = 0; i + 1 < count; i += 2) found.emplace_back(runs[i], runs[i + 1]);
    return found;
}

int combining_class(char32_t point) {
    if (point < 0x300) return 0;
    const auto* end = tables::combining + tables::combining_count;
    const auto* found = std::lower_bound(tables::combining, end, static_cast<std::uint32_t>(point) << 8);
    return found != end && *found >> 8 == point ? static_cast<int>(*found & 0xFF) : 0;
}

/// The decomposition in one of the two tables; false if there is none.
template <typename Emit>
bool look_up(const std::uint32_t* points, std::size_t count, const std::uint32_t* starts, const std::uint32_t* texts,
             char32_t point, const Emit& emit) {
    const auto* found = std::lower_bound(points, points + count, point);
    if (found == points + count || *found != point) return false;
    const auto row = static_cast<std::size_t>(found - points);
    for (std::uint32_t i = starts[row]; i < starts[row + 1]; ++i) emit(static_cast<char32_t>(texts[i]));
    return true;
}

template <typename Emit>
void decompose(char32_t point, bool compatible, const Emit& emit) {
    if (point < 0x80) return emit(point);
    if (point >= syllables && point < syllables + syllable_count) {
        const char32_t index = point - syllables;
        emit(leads + index / (vowel_count * tail_count));
        emit(vowels + index / tail_count % vowel_count);
        if (index % tail_count != 0) emit(tails + index % tail_count);
        return;
    }
    if (compatible && look_up(tables::compatible_points, tables::compatible_points_count, tables::compatible_starts,
                              tables::compatible_texts, point, emit))
        return;
    if (look_up(tables::canonical_points, tables::canonical_points_count, tables::canonical_starts,
                tables::canonical_texts, point, emit))
        return;
    emit(point);
}

/// What two characters compose to; 0 if they do not.
char32_t compose(char32_t first, char32_t second) {
    if (first >= leads && first < leads + lead_count && second >= vowels && second < vowels + vowel_count)
        return syllables + ((first - leads) * vowel_count + (second - vowels)) * tail_count;
    if (first >= syllables && first < syllables + syllable_count && (first - syllables) % tail_count == 0 &&
        second > tails && second < tails + tail_count)
        return first + (second - tails);
    std::size_t low = 0, high = tables::compositions_count / 3;
    while (low < high) {
        const std::size_t middle = (low + high) / 2;
        const std::uint32_t* row = tables::compositions + 3 * middle;
        if (row[0] < first || (row[0] == first && row[1] < second))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == tables::compositions_count / 3) return 0;
    const std::uint32_t* row = tables::compositions + 3 * low;
    return row[0] == first && row[1] == second ? row[2] : 0;
}

struct Mark {
    Change change;
    int combining;
};

/// Decomposed characters, marks in canonical order.
std::vector<Mark> decomposed(const std::u32string& text, bool compatible) {
    std::vector<Mark> found;
    found.reserve(text.size());
    std::size_t marks = 0;  // where the run of marks at the end begins
    const auto sort = [&] {
        std::stable_sort(found.begin() + static_cast<std::ptrdiff_t>(marks), found.end(),
                         [](const Mark& a, const Mark& b) { return a.combining < b.combining; });
    };
    for (const char32_t point : text) {
        std::int64_t change = 0;
        decompose(point, compatible, [&](char32_t part) {
            const int combining = combining_class(part);
            if (combining == 0) {
                sort();
                marks = found.size() + 1;
            }
            found.push_back({{part, change}, combining});
            change = 1;
        });
    }
    sort();
    return found;
}

}  // namespace

CharSet::CharSet(Ranges ranges, bool negated) {
    std::sort(ranges.begin(), ranges.end());
    for (const auto& [first, last] : ranges) {
        if (!ranges_.empty() && first <= ranges_.back().second + 1)
            ranges_.back().second = std::max(ranges_.back().second, last);
        else
            ranges_.emplace_back(first, last);
    }
    if (negated) {
        Ranges others;
        char32_t next = 0;
        for (const auto& [first, last] : ranges_) {
            if (first > next) others.emplace_back(next, first - 1);
            next = last + 1;
        }
        if (next <= last_point) others.emplace_back(next, last_point);
        ranges_ = std::move(others);
    }
    for (char32_t point = 0; point < 128; ++point) {
        if (search(point)) ascii_[point >> 6] |= std::uint64_t{1} << (point & 63);
    }
}

bool CharSet::search(char32_t point) const {
    auto found = std::upper_bound(ranges_.begin(), ranges_.end(), point,
                                  [](char32_t value, const auto& range) { return value < range.first; });
    return found != ranges_.begin() && point <= std::prev(found)->second;
}

std::optional<Ranges> category(std::string_view name) {
    std::string plain;
    for (const char c : name) {
        if (c == ' ' || c == '-' || c == '_') continue;
        plain.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
    }
    if (plain.empty() || plain.size() > 2) return std::nullopt;
    bool wanted[std::size(category_names)] = {};
    bool any = false;
    for (std::size_t i = 0; i < std::size(category_names); ++i) {
        wanted[i] = std::string_view(category_names[i]).substr(0, plain.size()) == plain;
        any = any || wanted[i];
    }
    if (!any) return std::nullopt;
    Ranges found;
    for (std::size_t i = 0; i < tables::categories_count; ++i) {
        const std::uint32_t row = tables::categories[i];
        if (!wanted[row & 31]) continue;
        const char32_t end = i + 1 < tables::categories_count ? tables::categories[i + 1] >> 5 : last_point + 1;
        found.emplace_back(row >> 5, end - 1);
    }
    return found;
}

Ranges space_ranges() {
    return ranges_of(tables::space, tables::space_count);
}
Ranges word_ranges() {
    return ranges_of(tables::word, tables::word_count);
}
Ranges digit_ranges() {
    return category("Nd").value_or(Ranges{});
}

bool is_rust_space(char32_t point) {
    return in_runs(tables::rust_space, tables::rust_space_count, point);
}
bool is_numeric(char32_t point) {
    return in_runs(tables::numeric, tables::numeric_count, point);
}
bool is_punctuation(char32_t point) {
    return in_runs(tables::punctuation, tables::punctuation_count, point);
}
bool is_regex_word(char32_t point) {
    return in_runs(tables::regex_word, tables::regex_word_count, point);
}
bool is_regex_space(char32_t point) {
    return in_runs(tables::regex_space, tables::regex_space_count, point);
}

std::u32string lowercase(char32_t point) {
    if (point == 0x130) return U"i\u0307";
    std::size_t low = 0, high = tables::lowercase_count / 2;
    while (low < high) {
        const std::size_t middle = (low + high) / 2;
        if (tables::lowercase[2 * middle] < point)
            low = middle + 1;
        else
            high = middle;
    }
    const bool known = low < tables::lowercase_count / 2 && tables::lowercase[2 * low] == point;
    return std::u32string(1, known ? static_cast<char32_t>(tables::lowercase[2 * low + 1]) : point);
}

std::vector<Change> normal_form(const std::u32string& text, bool compatible, bool composed) {
    const std::vector<Mark> marks = decomposed(text, compatible);
    std::vector<Change> found;
    found.reserve(marks.size());
    if (!composed) {
        for (const Mark& mark : marks) found.push_back(mark.change);
        return found;
    }
    std::optional<std::size_t> starter;  // the place in `found` of the character that marks are composed with
    int last = -1;                       // class of the last mark behind it that stays; -1: there is none
    for (const Mark& mark : marks) {
        const auto [point, change] = mark.change;
        if (starter && last < mark.combining) {
            if (const char32_t whole = compose(found[*starter].point, point); whole != 0) {
                found[*starter] = {whole, found[*starter].change + change - 1};
                continue;
            }
        }
        if (mark.combining == 0) {
            starter = found.size();
            last = -1;
        } else if (starter) {
            last = mark.combining;
        }
        found.push_back(mark.change);
    }
    return found;
}

}  // namespace trtprune::text
