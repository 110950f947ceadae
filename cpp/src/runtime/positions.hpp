#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "images/processor.hpp"

namespace trtprune::engine_dir {
struct EngineDir;
}

/// Position rules: from a prompt's text and kept visual tokens to the positions that the decoder reads.
///
/// One axis: a position is a number, and the tokens of a prompt are numbered 0, 1, 2 ….  Three axes, time, row and
/// column (M-RoPE, https://arxiv.org/abs/2409.12191): a text token has one number on all axes; an image begins at the
/// running position p, and its token in crop t, row r and column c of its grid has (p + t, p + r, p + c).  The rules
/// differ in what the dropped tokens leave behind.  Text behind an image goes on at the largest position so far plus
/// one, which with three axes is no count of tokens.
namespace trtprune::runtime {

using Ids = std::vector<std::int64_t>;

/// The visual tokens of one span that stand in a prompt; an image has one or several.
struct ImageTokens {
    Ids kept;                       ///< indices of these tokens among the span's
    const images::TokenPlan* plan;  ///< the image's, for its grid
    std::int64_t first = 0;         ///< the span's first visual token among the image's N
    std::int64_t tokens = 0;        ///< visual tokens of the span
};

/// A part of a prompt: a number of text tokens, or a span of an image.
using Piece = std::variant<std::int64_t, ImageTokens>;

/// The positions of a prompt.
struct Positions {
    std::vector<Ids> of_tokens;  ///< for each axis [S]
    std::int64_t next = 0;       ///< the position of the token behind the prompt, the same on all axes
};

/// A rule for prompts with images.
class PositionRule {
  public:
    /// \param name  `compact`: dropped tokens leave no gap; with three axes kept tokens stay at their row and column,
    ///              and text goes on behind the largest kept one.  `original`: every token has the position that it
    ///              would have if nothing had been dropped.
    /// \param axes  Numbers of a position, 1 or 3.
    /// \throws EngineDirError  for an unknown name.
    PositionRule(const std::string& name, std::int64_t axes);

    std::int64_t axes() const noexcept { return axes_; }

    /// The positions of the tokens of the pieces, in their order.
    ///
    /// \throws EngineDirError  for a visual token without row and column, where positions have them.
    Positions place(const std::vector<Piece>& pieces) const;

  private:
    std::int64_t add_image(const ImageTokens& image, Positions& positions) const;

    bool compact_;
    std::int64_t axes_;
};

/// The rule of a directory.
PositionRule position_rule_of(const engine_dir::EngineDir& config);

}  // namespace trtprune::runtime
