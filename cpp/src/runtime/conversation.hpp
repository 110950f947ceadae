#pragma once

#include <memory>
#include <optional>
#include <string>
#include <trtprune/vlm.hpp>
#include <vector>

#include "runtime/pipeline.hpp"

namespace trtprune::runtime {

/// Several questions about the same images.
///
/// Keeps the turns and, without a new selection, the KV cache.  The whole conversation is always tokenised again, and
/// ids that differ from the cached ones are computed again.
class Turns {
  public:
    /// \param pipeline  Outlives the object.
    /// \param images    All images of the conversation; they are in its first turn.
    Turns(const Pipeline& pipeline, std::vector<Image> images, const std::optional<std::string>& system);

    /// See `Conversation::ask`.
    Result ask(const std::string& prompt, const GenerateOptions& options, const TextCallback& on_text, bool repick);

  private:
    const Pipeline& pipeline_;
    std::vector<Image> images_;
    std::vector<text::Turn> turns_;
    bool asked_ = false;
    std::vector<Features> features_;
    std::optional<Selection> selection_;
    std::unique_ptr<DecoderCache> cache_;
    Ids cached_;
    std::optional<Budget> budget_;
};

}  // namespace trtprune::runtime
