#pragma once

#include <array>
#include <optional>

#include "images/processor.hpp"
#include "images/settings.hpp"
#include "images/steps.hpp"

namespace trtprune::images {

/// The image processors that make one crop of an image: those of CLIP, SigLIP, DINOv2 (BiT) and LLaVA 1.5.
///
/// The crop's features are the visual tokens, and nothing has to be packed.
class Single : public Processor {
  public:
    static constexpr const char* processor_name = "single";

    /// \throws EngineDirError  naming the file `where` and the setting, for an invalid one.
    static std::unique_ptr<Processor> from_settings(const Json& settings, const std::string& where);

    std::string name() const override { return processor_name; }
    const CropShape& shape() const override { return shape_; }
    TokenPlan plan(std::int64_t height, std::int64_t width, std::int64_t images) const override;
    Prepared prepare(const Image& image, std::int64_t images) const override;
    std::int64_t pixels_taken(std::int64_t width, std::int64_t height, std::int64_t images) const override;

  private:
    using Colour = std::array<std::uint8_t, 3>;

    /// \param pads  Whether the file's processor is the one that may pad.
    Single(const Json& values, bool pads);
    static Colour background(const Json& values);
    std::optional<Size> fixed_size() const;
    /// Size of the image with its padding.
    Size outer(Size image) const;

    CropShape shape_;
    CropSteps steps_;
    std::optional<Colour> background_;  ///< around an image that is padded to a square before the steps
};

}  // namespace trtprune::images
