#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "runtime/features.hpp"
#include "runtime/positions.hpp"
#include "text/prompt.hpp"

/// The places of a prompt's text and kept visual tokens in the decoder's input.
namespace trtprune::runtime {

using Plan = std::shared_ptr<const images::TokenPlan>;

/// The visual tokens that enter the decoder, of all images of a prompt.
struct Selection {
    std::vector<Ids> kept;     ///< for each image, ascending, indices of its visual tokens that enter
    std::vector<Tensor> rows;  ///< for each image [n, D], their features
    std::vector<Plan> plans;   ///< for each image what its N visual tokens show
    Ids keeps;                 ///< for each image its budget
};

/// For each of an image's spans its first row, and the row behind its last.
using Places = std::vector<std::pair<std::int64_t, std::int64_t>>;

/// One row's prompt as the decoder reads it; S rows of text and kept visual tokens.
struct Layout {
    Ids ids;                         ///< [S]; the placeholder's id stands for every kept visual token
    std::vector<Tensor> embeds;      ///< pieces [n, D] with S rows in all; together they are the decoder's input
    std::vector<Ids> positions;      ///< for each axis [S]
    std::int64_t next_position = 0;  ///< the position of the answer's first token, the same on all axes
    /// For each image and each of its spans the first row and the row behind the last; they are equal where no visual
    /// token of the span is kept.
    std::vector<Places> places;
    Ids markers;              ///< ascending, the rows of the text around and between an image's spans
    Ids keeps;                ///< for each image its budget
    std::vector<Ids> kept;    ///< for each image indices of its visual tokens in the rows
    std::vector<Plan> plans;  ///< for each image what its N visual tokens show

    /// S.
    std::int64_t length() const { return static_cast<std::int64_t>(ids.size()); }
};

/// Replaces the placeholders by the kept features.
///
/// \param prompt       A prompt with one placeholder for each span of the selection's images.
/// \param text_embeds  [T, D], the embeddings of all ids of the prompt; rows at placeholders are ignored.
/// \param selection    The features of each image that enter the decoder.
/// \param rule         The rule of the rows' positions.
Layout lay_out(const text::Prompt& prompt, const Tensor& text_embeds, const Selection& selection,
               const PositionRule& rule);

/// Ids of a prompt with the placeholder once for each visual token, as transformers' processor writes them.
Ids unpruned_ids(const text::Prompt& prompt, const Layout& layout);

/// Pieces [n, D] without the first `rows` rows of all together.
std::vector<Tensor> skip_rows(const std::vector<Tensor>& pieces, std::int64_t rows);

}  // namespace trtprune::runtime
