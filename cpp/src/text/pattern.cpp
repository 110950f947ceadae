#include "text/pattern.hpp"

#include <optional>
#include <trtprune/error.hpp>

#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

// The patterns of all known tokenizers take less than 20 steps a character.
constexpr std::uint64_t steps_per_byte = 100, steps_at_least = 1000000;
constexpr std::size_t largest_stack = 1U << 22;

}  // namespace

/// A search in one text.
class Pattern::Run {
  public:
    Run(const Pattern& pattern, std::string_view text)
        : pattern_(pattern), text_(text), left_(steps_at_least + steps_per_byte * text.size()) {}

    /// The end of the match that begins at a place.
    std::optional<std::size_t> match(std::size_t place) { return run(0, place); }

  private:
    // What to try if all else fails: a step at a place, or a loop that ends earlier (greedy) or later (lazy).
    struct Other {
        std::uint32_t step;
        bool loop;
        std::size_t place, limit;
    };

    std::optional<std::size_t> run(std::uint32_t step, std::size_t place) {
        const std::size_t floor = stack_.size();
        for (;;) {
            count();
            const Step& now = pattern_.steps_[step];
            bool alive = true;
            switch (now.kind) {
                case Kind::match:
                    stack_.resize(floor);
                    return place;
                case Kind::set:
                    alive = place < text_.size() && pattern_.sets_[now.set].has(char_at(text_, place));
                    if (alive) place += char_length(text_[place]);
                    ++step;
                    break;
                case Kind::loop:
                    alive = begin_loop(now, step, place);
                    ++step;
                    break;
                case Kind::jump:
                    step = now.first;
                    break;
                case Kind::split:
                    push({now.second, false, place, 0});
                    step = now.first;
                    break;
                case Kind::look:
                case Kind::not_look:
                    alive = run(step + 1, place).has_value() == (now.kind == Kind::look);
                    step = now.first;
                    break;
                case Kind::line_start:
                    alive = place == 0 || (text_[place - 1] == '\n' && place < text_.size());
                    ++step;
                    break;
                case Kind::line_end:
                    alive = place == text_.size() || text_[place] == '\n';
                    ++step;
                    break;
                case Kind::start:
                    alive = place == 0;
                    ++step;
                    break;
                case Kind::end:
                    alive = place == text_.size();
                    ++step;
                    break;
            }
            if (!alive && !resume(floor, step, place)) return std::nullopt;
        }
    }

    /// Takes the characters of a loop; false if they are too few.
    bool begin_loop(const Step& loop, std::uint32_t step, std::size_t& place) {
        const CharSet& set = pattern_.sets_[loop.set];
        const std::uint32_t wanted = loop.greedy ? loop.second : loop.first;
        std::size_t least = place;
        std::uint32_t taken = 0;
        while (taken < wanted && place < text_.size() && set.has(char_at(text_, place))) {
            place += char_length(text_[place]);
            if (++taken == loop.first) least = place;
            count();
        }
        if (taken < loop.first) return false;
        if (loop.greedy) {
            if (place > least) push({step, true, place, least});
        } else if (loop.second > taken) {
            push({step, true, place, loop.second - taken});
        }
        return true;
    }

    /// Goes back to the last alternative; false if there is none.
    bool resume(std::size_t floor, std::uint32_t& step, std::size_t& place) {
        while (stack_.size() > floor) {
            count();
            Other& other = stack_.back();
            if (!other.loop) {
                step = other.step;
                place = other.place;
                stack_.pop_back();
                return true;
            }
            const Step& loop = pattern_.steps_[other.step];
            if (loop.greedy) {
                other.place = before(text_, other.place);
                step = other.step + 1;
                place = other.place;
                if (other.place <= other.limit) stack_.pop_back();
                return true;
            }
            const bool more = other.limit > 0 && other.place < text_.size() &&
                              pattern_.sets_[loop.set].has(char_at(text_, other.place));
            if (more) {
                other.place += char_length(text_[other.place]);
                --other.limit;
                step = other.step + 1;
                place = other.place;
                return true;
            }
            stack_.pop_back();
        }
        return false;
    }

    void push(const Other& other) {
        if (stack_.size() == largest_stack) too_much();
        stack_.push_back(other);
    }

    void count() {
        if (left_-- == 0) too_much();
    }

    [[noreturn]] static void too_much() {
        throw InputError("the prompt cannot be tokenised: a regular expression of tokenizer.json takes too many steps",
                         "the checkpoint's tokenizer.json is at fault, if other prompts fail, too");
    }

    const Pattern& pattern_;
    std::string_view text_;
    std::uint64_t left_;
    std::vector<Other> stack_;
};

std::vector<Place> Pattern::find_all(std::string_view text) const {
    std::vector<Place> found;
    Run run(*this, text);
    std::optional<std::size_t> last;
    std::size_t place = 0;
    while (place <= text.size()) {
        const auto end = run.match(place);
        const std::size_t next = place < text.size() ? place + char_length(text[place]) : place + 1;
        if (!end || (*end == place && last == place)) {
            place = next;
            continue;
        }
        found.push_back({place, *end});
        last = *end;
        place = *end;
    }
    return found;
}

}  // namespace trtprune::text
