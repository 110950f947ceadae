#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "runtime/layout.hpp"

/// Prompts between the segments of a decoder.
namespace trtprune::runtime {

/// Value for text instead of an image's number.
constexpr std::int64_t text_row = -1;
/// Value for the text around and between an image's spans instead of an image's number.
constexpr std::int64_t marker_row = -2;
/// Value for merged tokens instead of a row of the first segment.
constexpr std::int64_t merged_row = -2;

/// A prompt between two segments, with S tokens.
struct PromptRow {
    std::vector<Tensor> pieces;      ///< arrays [n, D], together its S states
    std::vector<Ids> positions;      ///< for each axis [S]
    std::int64_t next_position = 0;  ///< the position behind its last token, the same on all axes
    Ids picture;                     ///< [S], the number of the image a token belongs to, `text_row` or `marker_row`
    Ids source;                      ///< [S], a token's row in the first segment, or `merged_row`
    std::vector<Ids> raters;         ///< for each image the rows of the first segment that rate it
    Ids keeps;                       ///< for each image its budget
    std::vector<Plan> plans;         ///< for each image what its visual tokens show, before pruning
    /// For each image its spans' rows in the first segment, where all visual tokens are.
    std::vector<Places> places;
    /// For each image the rank of its raters' attention at each point, as far as known, if that decides the number of
    /// tokens.
    std::vector<Ids> ranks;
    std::vector<Ids> counts;  ///< for each image the kept tokens at each point so far, likewise
    bool stale = false;       ///< whether a rank requires other numbers at earlier points

    /// S.
    std::int64_t length() const { return static_cast<std::int64_t>(source.size()); }
    /// The rows of an image, ascending.
    Ids rows_of(std::size_t number) const;
    /// The present rows of an image's raters.
    Ids rating(std::size_t number) const;
    /// The present rows of all images' raters.
    Ids rating() const;
    /// The tokens of an image, with merged ones.
    std::int64_t tokens_of(std::size_t number) const;
    /// The row's text and images for a position rule; merged tokens, which have no place in an image, count as text.
    std::vector<Piece> layout_pieces() const;
    /// For each image, the indices of its kept tokens among its visual tokens, without merged ones.
    std::vector<Ids> kept() const;
};

/// The raters' rows of each row of the batch, padded with row 0: int64 [B, R].
Tensor rating_table(const std::vector<PromptRow>& rows);

}  // namespace trtprune::runtime
