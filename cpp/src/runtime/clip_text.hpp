#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/chain.hpp"
#include "text/prompt.hpp"
#include "text/tokenizer.hpp"

namespace trtprune::runtime {

/// CLIP's tokenizer and the runs of its text tower: the question for CLIP.
///
/// CLIP's tower reads 77 tokens at most, the first and the last of them fixed.  A longer question becomes several
/// texts, each with both; methods average over them.
class ClipText {
  public:
    /// \param chain  The chain of an engine directory, which may lack a component of role `clip_text`; outlives the
    ///               object.
    /// \throws EngineDirError  if the tokenizer is missing or broken.
    explicit ClipText(const Chain& chain);

    /// `clip_text_embeds` float32 [M, P] of the user's words; empty without a text tower in the chain.
    ///
    /// \throws InputError  if the text is longer than any prompt of this build.
    Tensors read(const text::Prompt& prompt) const;

    /// The segments of a text, ids [M, length], each padded with the end-of-text token.
    std::vector<Ids> segments(const std::string& text) const;

  private:
    const Chain& chain_;
    std::optional<text::Tokenizer> tokenizer_;
    std::int64_t longest_ = 0;            // tokens of a segment
    std::optional<std::int64_t> length_;  // tokens that the text tower reads, where that is fixed
    Ids around_;                          // the first and the last token of a segment
};

}  // namespace trtprune::runtime
