#include "text/aligned_text.hpp"

#include <optional>
#include <trtprune/error.hpp>

#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

[[noreturn]] void outside() {
    throw InputError("the prompt cannot be tokenised: a normalizer of tokenizer.json reaches beyond the text",
                     "the checkpoint's tokenizer.json is at fault, if other prompts fail, too");
}

// A prompt has at most 4 MB; Python bounds the memory of what normalizers make of it.
constexpr std::size_t largest_text = 1U << 25;

void check_growth(std::size_t size) {
    if (size > largest_text)
        throw InputError("the prompt cannot be tokenised: a normalizer of tokenizer.json makes it too long",
                         "the checkpoint's tokenizer.json is at fault, if other prompts fail, too");
}

std::vector<Cut> joined(const std::vector<Cut>& cuts, Behavior behavior) {
    std::vector<Cut> found;
    const bool reversed = behavior == Behavior::merged_with_next;
    bool previous = false;
    for (std::size_t i = 0; i < cuts.size(); ++i) {
        const Cut& cut = cuts[reversed ? cuts.size() - 1 - i : i];
        const bool join = behavior == Behavior::contiguous ? cut.match == previous : cut.match && !previous;
        if (!join || found.empty())
            found.push_back({cut.start, cut.end, false});
        else if (reversed)
            found.back().start = cut.start;
        else
            found.back().end = cut.end;
        previous = cut.match;
    }
    if (reversed) return {found.rbegin(), found.rend()};
    return found;
}

}  // namespace

AlignedText::AlignedText(std::string_view text) : text_(text), end_(static_cast<std::int64_t>(text.size())) {
    places_.reserve(text.size());
    for (std::size_t i = 0; i < text.size();) {
        const std::size_t length = char_length(text[i]);
        places_.insert(places_.end(), length, {static_cast<std::int32_t>(i), static_cast<std::int32_t>(i + length)});
        i += length;
    }
}

std::pair<std::int64_t, std::int64_t> AlignedText::original(std::size_t first, std::size_t last) const {
    // As in the library: what is no part of the text, or empty, is taken as a place in the original.
    const auto begin = static_cast<std::int64_t>(first), end = static_cast<std::int64_t>(last);
    if (first == last) return {start_ + begin, start_ + end};
    if (first > last || last > places_.size()) return {begin, end};
    return {places_[first].first, places_[last - 1].second};
}

AlignedText AlignedText::slice(std::size_t first, std::size_t last) const {
    AlignedText part;
    std::tie(part.start_, part.end_) = original(first, last);
    part.text_ = text_.substr(first, last - first);
    part.places_.assign(places_.begin() + static_cast<std::ptrdiff_t>(first),
                        places_.begin() + static_cast<std::ptrdiff_t>(last));
    return part;
}

std::vector<AlignedText> AlignedText::split(const std::vector<Cut>& cuts, Behavior behavior) const {
    const bool plain = behavior == Behavior::removed || behavior == Behavior::isolated;
    std::vector<AlignedText> found;
    for (const Cut& cut : plain ? cuts : joined(cuts, behavior)) {
        const bool removed = behavior == Behavior::removed && cut.match;
        if (!removed && cut.end > cut.start) found.push_back(slice(cut.start, cut.end));
    }
    return found;
}

void AlignedText::transform(const std::vector<Change>& changes, std::size_t removed) {
    // The bytes that stand for a part of the original; inserted ones before them have no such part.
    std::optional<std::size_t> first, last;
    if (start_ == end_) return transform_range(0, 0, changes, removed);
    for (std::size_t i = 0; i < places_.size() && places_[i].second <= end_; ++i) {
        if (!first && places_[i].first >= start_ && places_[i].first != places_[i].second) first = i;
        last = i + 1;
    }
    if (!last) return;
    transform_range(first.value_or(*last), *last, changes, removed);
}

void AlignedText::transform_range(std::size_t first, std::size_t last, const std::vector<Change>& changes,
                                  std::size_t removed) {
    std::size_t next = first;  // the next character that is replaced
    const auto skip = [&] {
        if (next >= last) return std::size_t{0};
        const std::size_t length = char_length(text_[next]);
        next += length;
        return length;
    };
    std::size_t offset = first;
    for (std::size_t i = 0; i < removed; ++i) offset += skip();
    std::string text;
    std::vector<std::pair<std::int32_t, std::int32_t>> places;
    for (const auto& [point, change] : changes) {
        std::pair<std::int32_t, std::int32_t> place{0, 0};
        if (change > 0) {
            if (offset > places_.size()) outside();
            if (offset > 0)
                place = places_[offset - 1];
            else
                place = {static_cast<std::int32_t>(start_), static_cast<std::int32_t>(start_)};
        } else {
            if (offset >= places_.size()) outside();
            place = places_[offset];
            for (std::int64_t i = change; i <= 0 && next < last; ++i) offset += skip();
        }
        append(text, point);
        check_growth(text.size());
        places.insert(places.end(), text.size() - places.size(), place);
    }
    text_.replace(first, last - first, text);
    const auto begin = places_.begin() + static_cast<std::ptrdiff_t>(first);
    const auto rest = places_.erase(begin, begin + static_cast<std::ptrdiff_t>(last - first));
    places_.insert(rest, places.begin(), places.end());
}

void AlignedText::prepend(std::string_view text) {
    if (text_.empty()) return;
    check_growth(text_.size() + text.size());
    std::vector<Change> changes;
    for (const char32_t point : characters(text)) changes.push_back({point, changes.empty() ? 0 : 1});
    changes.push_back({char_at(text_, 0), 1});
    transform_range(0, char_length(text_[0]), changes, 0);
}

void AlignedText::replace(const std::vector<Cut>& cuts, std::string_view content) {
    std::string text;
    std::vector<std::pair<std::int32_t, std::int32_t>> places;
    places.reserve(places_.size());
    for (const Cut& cut : cuts) {
        if (cut.match) {
            const auto begin = static_cast<std::int32_t>(start_);
            text += content;
            check_growth(text.size());
            places.insert(places.end(), content.size(),
                          cut.end > 0 ? places_[cut.end - 1] : std::pair<std::int32_t, std::int32_t>(begin, begin));
            continue;
        }
        text.append(text_, cut.start, cut.end - cut.start);
        places.insert(places.end(), places_.begin() + static_cast<std::ptrdiff_t>(cut.start),
                      places_.begin() + static_cast<std::ptrdiff_t>(cut.end));
    }
    text_ = std::move(text);
    places_ = std::move(places);
}

void AlignedText::strip(bool left, bool right) {
    const std::u32string points = characters(text_);
    std::size_t leading = 0, trailing = 0;
    if (left) {
        while (leading < points.size() && is_rust_space(points[leading])) ++leading;
    }
    if (right) {
        while (trailing < points.size() && is_rust_space(points[points.size() - 1 - trailing])) ++trailing;
    }
    if (leading == 0 && trailing == 0) return;
    std::vector<Change> changes;
    for (std::size_t i = leading; i + trailing < points.size(); ++i) {
        // The library compares with the number of bytes, so that only ASCII text notes what is removed at the end.
        const bool final = i + trailing + 1 == text_.size();
        changes.push_back({points[i], final ? -static_cast<std::int64_t>(trailing) : 0});
    }
    transform(changes, leading);
}

std::vector<Cut> cuts_of(const Pattern& pattern, std::string_view text) {
    std::vector<Cut> found;
    std::size_t last = 0;
    for (const Place& place : pattern.find_all(text)) {
        if (place.start != last) found.push_back({last, place.start, false});
        found.push_back({place.start, place.end, true});
        last = place.end;
    }
    if (last != text.size()) found.push_back({last, text.size(), false});
    return found;
}

std::vector<Cut> cuts_of(const std::function<bool(char32_t)>& chosen, std::string_view text) {
    std::vector<Cut> found;
    std::size_t last = 0;
    for (std::size_t i = 0; i < text.size();) {
        const std::size_t length = char_length(text[i]);
        if (chosen(char_at(text, i))) {
            if (i != last) found.push_back({last, i, false});
            found.push_back({i, i + length, true});
            last = i + length;
        }
        i += length;
    }
    if (last != text.size()) found.push_back({last, text.size(), false});
    return found;
}

std::u32string characters(std::string_view text) {
    std::u32string points;
    points.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); i += char_length(text[i])) points.push_back(char_at(text, i));
    return points;
}

}  // namespace trtprune::text
