#include "runtime/layout.hpp"

#include <algorithm>

namespace trtprune::runtime {

Layout lay_out(const text::Prompt& prompt, const Tensor& text_embeds, const Selection& selection,
               const PositionRule& rule) {
    Layout layout;
    std::vector<Piece> pieces;
    Ids ends = prompt.image_positions;
    ends.push_back(static_cast<std::int64_t>(prompt.ids.size()));
    std::int64_t start = 0;
    for (std::size_t image = 0; image < ends.size(); ++image) {
        const std::int64_t end = ends[image];
        layout.ids.insert(layout.ids.end(), prompt.ids.begin() + start, prompt.ids.begin() + end);
        if (start < end) layout.embeds.push_back(text_embeds.slice(start, end));
        pieces.emplace_back(end - start);
        if (image < selection.rows.size()) {
            const Ids& kept = selection.kept[image];
            const std::int64_t first = layout.length();
            layout.ids.insert(layout.ids.end(), kept.size(), prompt.ids[static_cast<std::size_t>(end)]);
            if (!kept.empty()) layout.embeds.push_back(selection.rows[image]);
            layout.pictures.emplace_back(first, layout.length());
            pieces.emplace_back(ImageTokens{kept, selection.plans[image].get()});
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
    Ids ids;
    std::size_t image = 0;
    for (std::size_t i = 0; i < prompt.ids.size(); ++i) {
        const bool placeholder =
            image < prompt.image_positions.size() && prompt.image_positions[image] == static_cast<std::int64_t>(i);
        const std::int64_t count = placeholder ? layout.plans[image++]->tokens() : 1;
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
