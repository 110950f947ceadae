#include "runtime/layout.hpp"

#include <algorithm>

namespace trtprune::runtime {

namespace {

// The kept visual tokens of a span, counted from its first one, and their features.
struct Part {
    ImageTokens tokens;
    Tensor features;
    std::size_t image;
};

std::vector<Part> parts_of(const Selection& selection) {
    std::vector<Part> parts;
    for (std::size_t image = 0; image < selection.rows.size(); ++image) {
        const Ids& kept = selection.kept[image];
        std::int64_t first = 0;
        // A token of the tower's own, below 0, stands in front of all others.
        auto begin = kept.begin();
        for (const std::int64_t length : selection.plans[image]->span_lengths()) {
            const auto end = std::lower_bound(begin, kept.end(), first + length);
            Part part{{Ids(begin, end), selection.plans[image].get(), first, length}, {}, image};
            for (std::int64_t& token : part.tokens.kept) token -= first;
            if (begin != end) part.features = selection.rows[image].slice(begin - kept.begin(), end - kept.begin());
            parts.push_back(std::move(part));
            begin = end;
            first += length;
        }
    }
    return parts;
}

}  // namespace

Layout lay_out(const text::Prompt& prompt, const Tensor& text_embeds, const Selection& selection,
               const PositionRule& rule) {
    Layout layout;
    layout.places.resize(selection.rows.size());
    std::vector<Piece> pieces;
    const std::vector<Part> parts = parts_of(selection);
    Ids ends = prompt.image_positions;
    ends.push_back(static_cast<std::int64_t>(prompt.ids.size()));
    std::int64_t start = 0;
    auto marker = prompt.markers.begin();
    for (std::size_t number = 0; number < ends.size(); ++number) {
        const std::int64_t end = ends[number];
        const std::int64_t moved = layout.length() - start;
        for (; marker != prompt.markers.end() && *marker < end; ++marker) layout.markers.push_back(*marker + moved);
        layout.ids.insert(layout.ids.end(), prompt.ids.begin() + start, prompt.ids.begin() + end);
        if (start < end) layout.embeds.push_back(text_embeds.slice(start, end));
        pieces.emplace_back(end - start);
        if (number < parts.size()) {
            const Part& part = parts[number];
            const std::int64_t first = layout.length();
            layout.ids.insert(layout.ids.end(), part.tokens.kept.size(), prompt.ids[static_cast<std::size_t>(end)]);
            if (part.features) layout.embeds.push_back(part.features);
            layout.places[part.image].emplace_back(first, layout.length());
            pieces.emplace_back(part.tokens);
        }
        start = end + 1;
    }
    Positions positions = rule.place(pieces);
    layout.positions = std::move(positions.of_tokens);
    layout.next_position = positions.next;
    layout.keeps = selection.keeps;
    layout.kept = selection.kept;
    layout.plans = selection.plans;
    return layout;
}

Ids unpruned_ids(const text::Prompt& prompt, const Layout& layout) {
    Ids lengths, ids;
    for (const Plan& plan : layout.plans) {
        const Ids spans = plan->span_lengths();
        lengths.insert(lengths.end(), spans.begin(), spans.end());
    }
    std::size_t span = 0;
    for (std::size_t i = 0; i < prompt.ids.size(); ++i) {
        const bool placeholder =
            span < prompt.image_positions.size() && prompt.image_positions[span] == static_cast<std::int64_t>(i);
        const std::int64_t count = placeholder ? lengths.at(span++) : 1;
        ids.insert(ids.end(), static_cast<std::size_t>(count), prompt.ids[i]);
    }
    return ids;
}

std::vector<Tensor> skip_rows(const std::vector<Tensor>& pieces, std::int64_t rows) {
    std::vector<Tensor> rest;
    for (const Tensor& piece : pieces) {
        if (rows < piece.length()) rest.push_back(rows != 0 ? piece.slice(rows, piece.length()) : piece);
        rows = std::max<std::int64_t>(0, rows - piece.length());
    }
    return rest;
}

}  // namespace trtprune::runtime
