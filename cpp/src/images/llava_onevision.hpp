#pragma once

#include "images/anyres.hpp"

namespace trtprune::images {

/// The image processor of LLaVA-OneVision: an overview and a plane of tiles, which is shrunk if it has many more
/// patches than `most` crops.
///
/// If a prompt has several images, each is a single crop, padded to a square, with one newline token at its end.
class LlavaOnevision : public AnyRes {
  public:
    static constexpr const char* processor_name = "llava_onevision";

    /// \throws EngineDirError  naming the file `where` and the setting, for an invalid one.
    static std::unique_ptr<Processor> from_settings(const Json& settings, const std::string& where);

    std::string name() const override { return processor_name; }
    std::int64_t pixels_taken(std::int64_t width, std::int64_t height, std::int64_t images) const override;

  private:
    /// What this processor has beside the others of its kind.
    struct Own {
        std::int64_t most = 0;  ///< largest size of the plane of tiles, in crops: 9 for `anyres_max_9`
        Channels background{};  ///< red, green and blue of the padding to a square, 0 to 1
    };

    LlavaOnevision(const Json& values, const Own& own);
    static Own own_settings(const Json& values);
    /// Lines, and tokens per line, of a plane with these rows and columns of patches.
    Size shrunk(Size patches) const;
    std::int64_t taps() const override { return 4; }
    TokenPlan plan_of(Size image, std::int64_t images) const override;
    Plane tile_plane(Size image, const Axes& axes, Size tiles) const override;
    void cut(const PixelView& image, std::int64_t images,
             const std::function<void(const PixelView&)>& use) const override;

    Own own_;
};

}  // namespace trtprune::images
