#pragma once

#include "images/packed.hpp"
#include "images/processor.hpp"
#include "images/settings.hpp"
#include "images/steps.hpp"

namespace trtprune::images {

/// (height, width) that an image is scaled to: multiples of `factor`, its pixels between two bounds.
///
/// Formulas and rounding are those of `smart_resize` in transformers 5.23 (`models/qwen2_vl`), which goes to the even
/// number at halves.
///
/// \param image        The image's size, at least a pixel.
/// \param factor       Side of a visual token in pixels.
/// \param least, most  Bounds of the pixels.  A side is one token at least, so that a thin image can have more.
Size smart_size(Size image, std::int64_t factor, std::int64_t least, std::int64_t most);

/// The image processor of Qwen2-VL and Qwen2.5-VL: any size, in whole visual tokens, for a packed tower.
class Qwen2Vl : public Processor {
  public:
    static constexpr const char* processor_name = "qwen2_vl";

    /// \throws EngineDirError  naming the file `where` and the setting, for an invalid one.
    static std::unique_ptr<Processor> from_settings(const Json& settings, const std::string& where);

    std::string name() const override { return processor_name; }
    bool packed() const override { return true; }
    const CropShape& shape() const override { return token_; }
    TokenPlan plan(std::int64_t height, std::int64_t width, std::int64_t images) const override;
    Prepared prepare(const Image& image, std::int64_t images) const override;
    std::int64_t pixels_taken(std::int64_t width, std::int64_t height, std::int64_t images) const override;

  private:
    explicit Qwen2Vl(const Json& settings);
    /// The size that an image is scaled to; InputError for one that is too narrow.
    Size size_of(std::int64_t height, std::int64_t width) const;

    PackedShape shape_;
    CropShape token_;  ///< a visual token
    CropSteps steps_;  ///< rescaling and normalisation, and the filter of the resize
    std::int64_t least_ = 0;
    std::int64_t most_ = 0;
};

}  // namespace trtprune::images
