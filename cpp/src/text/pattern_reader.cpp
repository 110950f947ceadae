#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <trtprune/error.hpp>
#include <utility>

#include "text/pattern.hpp"
#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

constexpr std::uint32_t endless = std::numeric_limits<std::uint32_t>::max();
constexpr std::size_t largest_expression = 100000, largest_program = 20000;
constexpr std::uint32_t largest_count = 1000;
constexpr int deepest = 100;

/// A part of an expression.
struct Part {
    enum class Kind { set, sequence, choice, repeat, look, not_look, assertion };

    explicit Part(Kind which) : kind(which) {}

    Kind kind;
    std::uint32_t set = 0;                           // of `set`
    Pattern::Kind assertion = Pattern::Kind::start;  // of `assertion`
    std::uint32_t least = 0, most = 0;               // of `repeat`
    bool greedy = true;                              // of `repeat`
    std::vector<std::unique_ptr<Part>> parts;        // of the others; of `repeat` one

    /// Whether it can match no character.
    bool empty() const {
        const auto can = [](const auto& part) { return part->empty(); };
        switch (kind) {
            case Kind::set:
                return false;
            case Kind::sequence:
                return std::all_of(parts.begin(), parts.end(), can);
            case Kind::choice:
                return std::any_of(parts.begin(), parts.end(), can);
            case Kind::repeat:
                return least == 0 || can(parts[0]);
            default:
                return true;
        }
    }
};
using Node = std::unique_ptr<Part>;

Node node(Part::Kind kind) {
    return std::make_unique<Part>(kind);
}

bool is_digit(char32_t c) {
    return c >= '0' && c <= '9';
}
bool is_letter(char32_t c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
char32_t lower(char32_t c) {
    return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c;
}

}  // namespace

/// Reads an expression into a tree, and writes the tree as a program.
class PatternReader {
  public:
    PatternReader(std::string_view expression, const std::string& where) : where_(where) {
        if (expression.size() > largest_expression || !is_utf8(expression)) refuse("its length or encoding");
        for (std::size_t i = 0; i < expression.size(); i += char_length(expression[i]))
            text_.push_back(char_at(expression, i));
    }

    Pattern read() {
        const Node tree = choice(0);
        if (place_ < text_.size()) refuse("a ) without (");
        write(*tree);
        step({Pattern::Kind::match});
        return std::move(pattern_);
    }

    /// The text as it is.
    Pattern literal() {
        for (const char32_t c : text_) write(*character(c));
        step({Pattern::Kind::match});
        return std::move(pattern_);
    }

  private:
    [[noreturn]] void refuse(const std::string& what) const {
        std::string shown;
        for (std::size_t i = 0; i < std::min<std::size_t>(text_.size(), 80); ++i) append(shown, text_[i]);
        throw EngineDirError(where_ + ": the regular expression '" + shown + "': " + what + " is not supported",
                             "correct the checkpoint's tokenizer.json, or run the directory from Python");
    }

    bool more() const { return place_ < text_.size(); }
    char32_t peek(std::size_t ahead = 0) const { return place_ + ahead < text_.size() ? text_[place_ + ahead] : 0; }
    bool at(std::u32string_view what) const { return text_.compare(place_, what.size(), what) == 0; }
    bool take(std::u32string_view what) {
        if (!at(what)) return false;
        place_ += what.size();
        return true;
    }

    Node choice(int depth) {
        if (depth > deepest) refuse("its depth");
        Node found = node(Part::Kind::choice);
        do {
            found->parts.push_back(sequence(depth));
        } while (take(U"|"));
        return found->parts.size() == 1 ? std::move(found->parts[0]) : std::move(found);
    }

    Node sequence(int depth) {
        Node found = node(Part::Kind::sequence);
        std::optional<char32_t> last;  // a letter without regard to case, directly before
        while (more() && peek() != '|' && peek() != ')') {
            const bool letter = fold_ && is_letter(peek());
            if (letter && last) check_fold(lower(*last), lower(peek()));
            last = letter ? std::optional<char32_t>(peek()) : std::nullopt;
            found->parts.push_back(quantified(atom(depth)));
        }
        return found;
    }

    /// Letters that together equal one other character, as ss and ß, are not supported.
    void check_fold(char32_t first, char32_t second) const {
        const std::pair<char32_t, char32_t> pairs[] = {{'s', 's'}, {'f', 'f'}, {'f', 'i'}, {'f', 'l'}, {'s', 't'}};
        for (const auto& pair : pairs) {
            if (pair.first == first && pair.second == second) refuse("ss, ff, fi, fl or st in (?i:…)");
        }
    }

    Node atom(int depth) {
        const char32_t c = peek();
        if (c == '(') return group(depth);
        if (c == '[') return one_of(char_class());
        if (c == '*' || c == '+' || c == '?') refuse("a quantifier of nothing");
        ++place_;
        switch (c) {
            case '.':
                return one_of(CharSet({{'\n', '\n'}}, true));
            case '^':
                return assertion(Pattern::Kind::line_start);
            case '$':
                return assertion(Pattern::Kind::line_end);
            case '\\':
                break;
            default:
                return character(c);
        }
        if (take(U"A")) return assertion(Pattern::Kind::start);
        if (take(U"z")) return assertion(Pattern::Kind::end);
        Ranges ranges;
        const std::optional<char32_t> one = escape(ranges);
        return one ? character(*one) : one_of(CharSet(std::move(ranges)));
    }

    Node group(int depth) {
        ++place_;
        const bool outer = fold_;
        Part::Kind kind = Part::Kind::sequence;
        if (take(U"?=")) {
            kind = Part::Kind::look;
        } else if (take(U"?!")) {
            kind = Part::Kind::not_look;
        } else if (take(U"?i:")) {
            fold_ = true;
        } else if (!take(U"?:") && peek() == '?') {
            refuse("a group of the kind (" + to_utf8(peek()) + to_utf8(peek(1)) + "…)");
        }
        Node inside = choice(depth + 1);
        if (!take(U")")) refuse("a ( without )");
        fold_ = outer;
        Node found = node(kind);
        found->parts.push_back(std::move(inside));
        return found;
    }

    Node quantified(Node atom) {
        bool again = false;
        while (more()) {
            std::uint32_t least = 0, most = endless;
            const char32_t c = peek();
            if (c == '{') {
                if (!bounds(least, most)) break;
            } else if (c == '*' || c == '+' || c == '?') {
                ++place_;
                least = c == '+' ? 1 : 0;
                most = c == '?' ? 1 : endless;
            } else {
                break;
            }
            if (again || atom->kind == Part::Kind::assertion) refuse("a quantifier of a quantifier or an anchor");
            if (peek() == '+' || (c == '{' && peek() == '?')) refuse("a possessive quantifier or a lazy count");
            if (atom->empty()) refuse("a quantifier of a part that may be empty");
            again = true;
            Node found = node(Part::Kind::repeat);
            found->least = least;
            found->most = most;
            found->greedy = !take(U"?");
            found->parts.push_back(std::move(atom));
            atom = std::move(found);
        }
        return atom;
    }

    /// Reads {2}, {1,3} or {1,}; false if it is none of them, but text.
    bool bounds(std::uint32_t& least, std::uint32_t& most) {
        std::size_t i = place_ + 1;
        const auto number = [&]() -> std::optional<std::uint32_t> {
            std::uint32_t value = 0;
            const std::size_t begin = i;
            while (i < text_.size() && is_digit(text_[i])) {
                value = value * 10 + static_cast<std::uint32_t>(text_[i++] - '0');
                if (value > largest_count) refuse("a count of more than 1,000");
            }
            return i == begin ? std::nullopt : std::optional<std::uint32_t>(value);
        };
        const auto first = number();
        std::optional<std::uint32_t> second = first;
        if (i < text_.size() && text_[i] == ',') {
            ++i;
            second = number();
            if (!second) second = endless;
        }
        if (!first || i >= text_.size() || text_[i] != '}') refuse("a { that is no count");
        if (*first > *second) refuse("a count that goes down");
        least = *first;
        most = *second;
        place_ = i + 1;
        return true;
    }

    CharSet char_class() {
        ++place_;
        const bool negated = take(U"^");
        Ranges ranges;
        bool first = true;
        while (!take(U"]")) {
            if (!more()) refuse("a [ without ]");
            if (at(U"[") || at(U"&&") || (first && at(U"]"))) refuse("'[', '&&' or a first ']' in a class");
            first = false;
            const std::optional<char32_t> begin = class_item(ranges);
            if (!at(U"-") || peek(1) == ']') {
                if (begin) ranges.emplace_back(*begin, *begin);
                continue;
            }
            ++place_;
            if (at(U"[") || !begin) refuse("a range without an end");
            const std::optional<char32_t> end = class_item(ranges);
            if (!end || *end < *begin) refuse("a range that goes down");
            ranges.emplace_back(*begin, *end);
        }
        if (fold_) add_cases(ranges);
        return CharSet(std::move(ranges), negated);
    }

    /// One character of a class, or none if it is a set, which is added.
    std::optional<char32_t> class_item(Ranges& ranges) {
        if (!more()) refuse("a [ without ]");
        const char32_t c = text_[place_++];
        return c == '\\' ? escape(ranges) : c;
    }

    /// What follows a backslash: a character, or none if it is a set, which is added.
    std::optional<char32_t> escape(Ranges& ranges) {
        if (!more()) refuse("a \\ at the end");
        const char32_t c = text_[place_++];
        const auto add = [&](const Ranges& more_ranges, bool negated) -> std::optional<char32_t> {
            if (fold_) refuse("a set in (?i:…)");
            const CharSet set(more_ranges, negated);
            ranges.insert(ranges.end(), set.ranges().begin(), set.ranges().end());
            return std::nullopt;
        };
        switch (c) {
            case 'n':
                return U'\n';
            case 'r':
                return U'\r';
            case 't':
                return U'\t';
            case 'f':
                return U'\f';
            case 'v':
                return U'\v';
            case 's':
                return add(space_ranges(), false);
            case 'S':
                return add(space_ranges(), true);
            case 'w':
                return add(word_ranges(), false);
            case 'W':
                return add(word_ranges(), true);
            case 'd':
                return add(digit_ranges(), false);
            case 'D':
                return add(digit_ranges(), true);
            case 'p':
            case 'P':
                return add_property(c == 'P', add);
            case 'u':
                return hex(4);
            case 'x':
                return take(U"{") ? braced_hex() : hex(2);
            default:
                break;
        }
        if (is_letter(c) || is_digit(c) || c > 126) refuse("\\" + to_utf8(c));
        return c;
    }

    template <typename Add>
    std::optional<char32_t> add_property(bool negated, const Add& add) {
        if (!take(U"{")) refuse("\\p without {");
        const bool inverse = take(U"^");
        std::string name;
        while (more() && peek() != '}') append(name, text_[place_++]);
        if (!take(U"}")) refuse("\\p{ without }");
        const auto ranges = category(name);
        if (!ranges) refuse("\\p{" + name + "}");
        return add(*ranges, negated != inverse);
    }

    char32_t hex(int digits) {
        char32_t value = 0;
        for (int i = 0; i < digits; ++i) value = value * 16 + hex_digit();
        return scalar(value);
    }

    char32_t braced_hex() {
        char32_t value = 0;
        do {
            value = value * 16 + hex_digit();
            if (value > 0x10FFFF) refuse("a code point that does not exist");
        } while (!take(U"}"));
        return scalar(value);
    }

    char32_t hex_digit() {
        const char32_t c = more() ? lower(text_[place_++]) : 0;
        if (is_digit(c)) return c - '0';
        if (c < 'a' || c > 'f') refuse("a code point that is no hexadecimal number");
        return c - 'a' + 10;
    }

    char32_t scalar(char32_t value) const {
        if ((value >= 0xD800 && value < 0xE000) || value > 0x10FFFF) refuse("a code point that is no character");
        return value;
    }

    /// Adds the other case of ASCII letters, and the two other characters that equal s and k without regard to case.
    void add_cases(Ranges& ranges) const {
        Ranges others;
        for (const auto& [first, last] : ranges) {
            if (last > 126) refuse("a character that is not ASCII in (?i:…)");
            for (char32_t c = first; c <= last; ++c) {
                if (!is_letter(c)) continue;
                others.emplace_back(c ^ 0x20, c ^ 0x20);
                if (lower(c) == 's') others.emplace_back(0x17F, 0x17F);
                if (lower(c) == 'k') others.emplace_back(0x212A, 0x212A);
            }
        }
        ranges.insert(ranges.end(), others.begin(), others.end());
    }

    Node character(char32_t c) {
        Ranges ranges = {{c, c}};
        if (fold_) add_cases(ranges);
        return one_of(CharSet(std::move(ranges)));
    }

    Node one_of(CharSet set) {
        Node found = node(Part::Kind::set);
        found->set = static_cast<std::uint32_t>(pattern_.sets_.size());
        pattern_.sets_.push_back(std::move(set));
        return found;
    }

    static Node assertion(Pattern::Kind kind) {
        Node found = node(Part::Kind::assertion);
        found->assertion = kind;
        return found;
    }

    std::uint32_t step(Pattern::Step step) {
        if (pattern_.steps_.size() == largest_program) refuse("its size");
        pattern_.steps_.push_back(step);
        return static_cast<std::uint32_t>(pattern_.steps_.size() - 1);
    }
    std::uint32_t next() const { return static_cast<std::uint32_t>(pattern_.steps_.size()); }

    void write(const Part& part) {
        switch (part.kind) {
            case Part::Kind::set:
                step({Pattern::Kind::set, true, part.set});
                break;
            case Part::Kind::sequence:
                for (const Node& inside : part.parts) write(*inside);
                break;
            case Part::Kind::choice:
                write_choice(part);
                break;
            case Part::Kind::repeat:
                write_repeat(part);
                break;
            case Part::Kind::assertion:
                step({part.assertion});
                break;
            case Part::Kind::look:
            case Part::Kind::not_look: {
                const auto kind = part.kind == Part::Kind::look ? Pattern::Kind::look : Pattern::Kind::not_look;
                const std::uint32_t look = step({kind});
                write(*part.parts[0]);
                step({Pattern::Kind::match});
                pattern_.steps_[look].first = next();
                break;
            }
        }
    }

    void write_choice(const Part& part) {
        std::vector<std::uint32_t> ends;
        for (std::size_t i = 0; i < part.parts.size(); ++i) {
            if (i + 1 == part.parts.size()) {
                write(*part.parts[i]);
                break;
            }
            const std::uint32_t split = step({Pattern::Kind::split});
            pattern_.steps_[split].first = next();
            write(*part.parts[i]);
            ends.push_back(step({Pattern::Kind::jump}));
            pattern_.steps_[split].second = next();
        }
        for (const std::uint32_t end : ends) pattern_.steps_[end].first = next();
    }

    void write_repeat(const Part& part) {
        const Part& inside = *part.parts[0];
        if (inside.kind == Part::Kind::set) {
            step({Pattern::Kind::loop, part.greedy, inside.set, part.least, part.most});
            return;
        }
        const auto branch = [&](std::uint32_t split, std::uint32_t into, std::uint32_t past) {
            pattern_.steps_[split].first = part.greedy ? into : past;
            pattern_.steps_[split].second = part.greedy ? past : into;
        };
        for (std::uint32_t i = 0; i < part.least; ++i) write(inside);
        if (part.most == endless) {
            const std::uint32_t split = step({Pattern::Kind::split});
            const std::uint32_t into = next();
            write(inside);
            const std::uint32_t jump = step({Pattern::Kind::jump});
            pattern_.steps_[jump].first = split;
            branch(split, into, next());
            return;
        }
        std::vector<std::uint32_t> splits;
        for (std::uint32_t i = part.least; i < part.most; ++i) {
            splits.push_back(step({Pattern::Kind::split}));
            pattern_.steps_[splits.back()].first = next();
            write(inside);
        }
        for (const std::uint32_t split : splits) branch(split, pattern_.steps_[split].first, next());
    }

    std::string where_;
    std::u32string text_;
    std::size_t place_ = 0;
    bool fold_ = false;
    Pattern pattern_;
};

Pattern Pattern::from_regex(std::string_view expression, const std::string& where) {
    return PatternReader(expression, where).read();
}

Pattern Pattern::from_text(std::string_view text, const std::string& where) {
    return PatternReader(text, where).literal();
}

}  // namespace trtprune::text
