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

std::pair<std::int64_t, std::int64_t> PromptRow::span(std::size_t number) const {
    const auto wanted = static_cast<std::int64_t>(number);
    const auto first = std::find(picture.begin(), picture.end(), wanted);
    const auto last = std::find(picture.rbegin(), picture.rend(), wanted);
    return {first - picture.begin(), picture.rend() - last};
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
    std::int64_t done = 0;
    for (std::size_t number = 0; number < plans.size(); ++number) {
        const auto [begin, stop] = span(number);
        ImageTokens image{{}, plans[number].get()};
        for (std::int64_t i = begin; i < stop; ++i) {
            const std::int64_t row = source[static_cast<std::size_t>(i)];
            if (row != merged_row) image.kept.push_back(row - firsts[number]);
        }
        const std::int64_t merged = stop - begin - static_cast<std::int64_t>(image.kept.size());
        parts.emplace_back(begin - done);
        parts.emplace_back(std::move(image));
        parts.emplace_back(merged);
        done = stop;
    }
    parts.emplace_back(length() - done);
    return parts;
}

std::vector<Ids> PromptRow::kept() const {
    std::vector<Ids> kept;
    for (const Piece& piece : layout_pieces()) {
        if (const auto* image = std::get_if<ImageTokens>(&piece)) kept.push_back(image->kept);
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
