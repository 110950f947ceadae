#pragma once

#include "images/anyres.hpp"

namespace trtprune::images {

/// The image processor of LLaVA-NeXT (LLaVA 1.6): an overview and a plane of tiles; each image of a prompt is cut so.
///
/// Layout `model`: the tokens of the overview, then the unpadded plane line by line, a newline token behind each line.
/// Layout `paper`: neither unpadding nor newline tokens, so that every crop gives all of its patches, as the codes of
/// AdaV, CDPruner, VisPruner and FasterVLM have it (`mm_patch_merge_type="spatial"`).
class LlavaNext : public AnyRes {
  public:
    static constexpr const char* processor_name = "llava_next";

    /// \throws EngineDirError  naming the file `where` and the setting, for an invalid one.
    static std::unique_ptr<Processor> from_settings(const Json& settings, const std::string& where);

    std::string name() const override { return processor_name; }

  private:
    explicit LlavaNext(const Json& values);
    Plane tile_plane(Size image, const Axes& axes, Size tiles) const override;
};

}  // namespace trtprune::images
