#include "runtime/segment_rows.hpp"

#include <algorithm>
#include <set>

namespace trtprune::runtime {

namespace {

// Text rows that come from these rows of the first segment.
Ids rows_from(const PromptRow& row, const Ids& wanted) {
    const std::set<std::int64_t> sources(wanted.begin(), wanted.end());
    Ids rows;
    for (std::size_t i = 0; i < row.source.size(); ++i) {
        if (row.picture[i] == text_row && sources.count(row.source[i]) != 0) {
            rows.push_back(static_cast<std::int64_t>(i));
        }
    }
    return rows;
}

}  // namespace

Ids PromptRow::rows_of(std::size_t number) const {
    Ids rows;
    for (std::size_t i = 0; i < picture.size(); ++i) {
        if (picture[i] == static_cast<std::int64_t>(number)) rows.push_back(static_cast<std::int64_t>(i));
    }
    return rows;
}

Ids PromptRow::rating(std::size_t number) const {
    return rows_from(*this, raters.at(number));
}

Ids PromptRow::rating() const {
    Ids all;
    for (const Ids& own : raters) all.insert(all.end(), own.begin(), own.end());
    return rows_from(*this, all);
}

std::int64_t PromptRow::tokens_of(std::size_t number) const {
    return std::count(picture.begin(), picture.end(), static_cast<std::int64_t>(number));
}

std::vector<Piece> PromptRow::layout_pieces() const {
    std::vector<Piece> parts;
    std::int64_t done = 0, counted = 0;
    const auto add = [&](std::int64_t text) {
        parts.emplace_back(text);
        counted += text;
    };
    for (std::size_t number = 0; number < plans.size(); ++number) {
        Ids visual;
        std::int64_t merged = 0;
        for (const std::int64_t row : rows_of(number)) {
            const std::int64_t from = source[static_cast<std::size_t>(row)];
            if (from == merged_row) {
                ++merged;
            } else {
                visual.push_back(from);
            }
        }
        std::int64_t first = 0;
        for (const auto& [begin, stop] : places[number]) {
            ImageTokens span{{}, plans[number].get(), first, stop - begin};
            for (const std::int64_t row : visual) {
                if (begin <= row && row < stop) span.kept.push_back(row - begin);
            }
            // Text is never pruned: all that lies between two spans of the first segment is still there.
            add(begin - done);
            counted += static_cast<std::int64_t>(span.kept.size());
            parts.emplace_back(std::move(span));
            done = stop;
            first += stop - begin;
        }
        add(merged);
    }
    add(length() - counted);
    return parts;
}

std::vector<Ids> PromptRow::kept() const {
    const std::set<std::int64_t> present(source.begin(), source.end());
    std::vector<Ids> kept;
    for (const Places& spans : places) {
        Ids& own = kept.emplace_back();
        std::int64_t token = 0;
        for (const auto& [begin, stop] : spans) {
            for (std::int64_t row = begin; row < stop; ++row, ++token) {
                if (present.count(row) != 0) own.push_back(token);
            }
        }
    }
    return kept;
}

Tensor rating_table(const std::vector<PromptRow>& rows) {
    std::vector<Ids> found;
    std::size_t width = 0;
    for (const PromptRow& row : rows) {
        found.push_back(row.raters.empty() ? Ids{0} : row.rating());
        width = std::max(width, found.back().size());
    }
    const Tensor table =
        Tensor::zeros(DType::int64, {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(width)});
    for (std::size_t b = 0; b < found.size(); ++b) {
        std::copy(found[b].begin(), found[b].end(), table.data<std::int64_t>() + b * width);
    }
    return table;
}

}  // namespace trtprune::runtime
