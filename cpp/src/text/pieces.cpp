#include "text/pieces.hpp"

#include <algorithm>
#include <string_view>
#include <trtprune/error.hpp>
#include <utility>

#include "text/aligned_text.hpp"
#include "text/unicode.hpp"

namespace trtprune::text {

void too_long() {
    throw EngineDirError(
        "the chat template writes more than 1,048,576 characters",
        "correct the checkpoint's chat template (chat_template.jinja) and build again, or write the whole prompt "
        "yourself (raw_prompt)");
}

namespace {

bool fits(const std::optional<bool>& wanted, bool value) {
    return !wanted || *wanted == value;
}

/// What a rule's conditions ask of a turn.
struct Conditions {
    bool system, first, last, images;
};

const std::vector<PieceInfo>& chosen(const std::vector<Rule>& rules, const Conditions& turn) {
    static const std::vector<PieceInfo> nothing;
    for (const Rule& rule : rules) {
        if (fits(rule.system, turn.system) && fits(rule.first, turn.first) && fits(rule.last, turn.last) &&
            fits(rule.images, turn.images))
            return rule.pieces;
    }
    return nothing;
}

void check(const std::vector<Refusal>& refusals, bool system, bool several) {
    for (const Refusal& refusal : refusals) {
        if (!fits(refusal.system, system) || !fits(refusal.several, several)) continue;
        if (refusal.error == "input") throw InputError(refusal.message, refusal.hint);
        throw EngineDirError(refusal.message, refusal.hint);
    }
}

bool has(const std::u32string& set, char32_t point) {
    return set.find(point) != std::u32string::npos;
}

bool is_blank(const std::string& text) {
    // Python's white space is Unicode's and four separators of ASCII.
    const std::u32string points = characters(text);
    return std::all_of(points.begin(), points.end(),
                       [](char32_t point) { return is_rust_space(point) || (point >= 0x1C && point <= 0x1F); });
}

/// The prompt as it grows.
class Writer {
  public:
    explicit Writer(const std::string& system) : system_(characters(system)) {}

    /// Runs the pieces of a turn.
    ///
    /// \param asked  Whether the turn is the last one, whose text is the question.
    void write(const std::vector<PieceInfo>& pieces, const Turn& turn, bool asked) {
        for (const PieceInfo& piece : pieces) {
            const std::size_t start = text_.size();
            if (piece.kind == "open") {
                opened_.push_back(start);
            } else if (piece.kind == "close") {
                if (opened_.empty()) continue;  // the directory was checked
                close(opened_.back(), characters(piece.left), characters(piece.right));
                opened_.pop_back();
            } else if (piece.kind == "images") {
                const std::u32string value = characters(piece.value);
                for (std::int64_t i = 0; i < turn.images && !value.empty(); ++i) add(value);
            } else if (piece.kind == "literal") {
                add(characters(piece.value));
            } else if (piece.kind == "system") {
                add(system_);
            } else if (piece.kind == "text") {
                add(characters(turn.text));
                if (asked) questions_.emplace_back(start, text_.size());
            } else {
                throw EngineDirError("the chat template has a piece of the unknown kind '" + piece.kind + "'",
                                     "build the directory again");
            }
        }
    }

    Rendered rendered(const Turn& last) const {
        const bool known =
            questions_.size() == 1 && !is_blank(last.text) && questions_[0].first != questions_[0].second;
        if (!known) return {text_, text_.size(), text_.size()};
        return {text_, questions_[0].first, questions_[0].second};
    }

  private:
    void add(const std::u32string& text) {
        if (text.size() > longest_prompt - text_.size()) too_long();
        text_ += text;
    }

    /// Strips what was written since a place.
    void close(std::size_t start, const std::u32string& left, const std::u32string& right) {
        std::size_t first = start, last = text_.size();
        while (first < last && has(left, text_[first])) ++first;
        while (last > first && has(right, text_[last - 1])) --last;
        const std::size_t removed = first - start;
        text_.erase(last);
        text_.erase(start, removed);
        const auto move = [&](std::size_t& place) {
            if (place <= start) return;
            const std::size_t moved = place > removed ? place - removed : 0;
            place = std::min(std::max(moved, start), text_.size());
        };
        for (auto& [begin, end] : questions_) {
            move(begin);
            move(end);
        }
    }

    std::u32string system_, text_;
    std::vector<std::size_t> opened_;
    std::vector<std::pair<std::size_t, std::size_t>> questions_;
};

}  // namespace

Rendered render(const TemplateInfo& pieces, const std::vector<Turn>& turns) {
    const bool system = !turns.empty() && turns[0].role == "system";
    const std::size_t begin = system ? 1 : 0, count = turns.size() - begin;
    bool ordered = count % 2 == 1;
    for (std::size_t i = 0; i < count; ++i)
        ordered = ordered && turns[begin + i].role == (i % 2 == 0 ? "user" : "assistant");
    if (!ordered)
        throw InputError("the turns are not those of a conversation",
                         "a system turn or none, then questions and answers by turns; the last is a question");
    check(pieces.refusals, system, count > 1);
    Writer writer(system ? turns[0].text : "");
    writer.write(system ? pieces.system : pieces.begin, turns[begin], false);
    for (std::size_t i = 0; i < count; ++i) {
        const Turn& turn = turns[begin + i];
        const Conditions conditions{system, i<2, i + 2 >= count, turn.images> 0};
        const bool asked = i + 1 == count;
        writer.write(chosen(turn.role == "user" ? pieces.user : pieces.assistant, conditions), turn, asked);
        if (asked) writer.write(chosen(pieces.end, conditions), turn, false);
    }
    return writer.rendered(turns.back());
}

}  // namespace trtprune::text
