#pragma once

#include <string>
#include <utility>
#include <vector>

#include "runtime/chain.hpp"

namespace trtprune::runtime {

/// What the pruner of a directory reads of an image beside its features; nothing where there is no pruner.
std::vector<std::string> image_inputs(const engine_dir::EngineDir& config);

/// The pruner in front of the decoder: which visual tokens of an image enter it.
///
/// What the graph reads follows from its inputs: those that the vision graph returns are the image's, those of the text
/// encoders the prompt's.
class Pruner {
  public:
    /// \param chain  With a component of role `pruner` that belongs to no segment; outlives the object.
    explicit Pruner(const Chain& chain);

    /// Whether it reads the prompt's embeddings.
    bool reads_embeds() const;

    /// Selects the visual tokens of one image.
    ///
    /// An image without a choice (`TokenPlan::without_choice`) does not go through the graph.
    ///
    /// \param text    [T, D], the embeddings that the method selects by, if it does.
    /// \param keep    Tokens to keep.
    /// \param seed    For methods that draw.
    /// \param others  Further inputs by name, without their batch dimension; those that the graph has are used.
    /// \return        Kept indices [n], ascending, and features [n, D]; n is `keep` and the newline tokens that stay.
    std::pair<Ids, Tensor> prune(const Features& features, const Tensor& text, std::int64_t keep, std::int64_t seed,
                                 const Tensors& others) const;

  private:
    bool reads(const std::string& name) const;
    Tensors inputs(const Features& features, const Ids& candidates) const;
    std::pair<Ids, Tensor> laid_out(const Features& features, Ids kept, Tensor rows) const;

    const Chain& chain_;
    const engine_dir::ComponentInfo& component_;
    std::vector<std::string> image_inputs_;
};

}  // namespace trtprune::runtime
