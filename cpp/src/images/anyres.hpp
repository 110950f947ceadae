#pragma once

#include <functional>
#include <string>
#include <vector>

#include "images/planes.hpp"
#include "images/processor.hpp"
#include "images/settings.hpp"
#include "images/steps.hpp"

/// Images of any resolution, as LLaVA-NeXT and its descendants cut them: an overview and a plane of tiles.
///
/// The image is laid into the best of a list of resolutions (pinpoints), keeping its shape, and cut into tiles; the
/// first crop is an overview, the whole image squashed to one crop.  Patches of the tiles that show padding alone are
/// left out and a newline token ends each line.  Formulas and rounding are transformers' (5.23).
namespace trtprune::images {

/// The resolution that keeps most pixels of an image; of equal ones that with the fewest pixels to spare, the first of
/// those.
Size best_resolution(Size image, const std::vector<Size>& resolutions);

/// Size of an image that is scaled to touch two sides of a resolution, rounded up.
Size size_within(Size image, Size resolution);

/// Rows and columns of a plane of `plane` patches that show more than padding.
std::array<Range, 2> unpadded(Size image, Size plane);

/// What the processors of this kind share.
class AnyRes : public Processor {
  public:
    const CropShape& shape() const override { return shape_; }
    TokenPlan plan(std::int64_t height, std::int64_t width, std::int64_t images) const override;
    Prepared prepare(const Image& image, std::int64_t images) const override;
    std::int64_t pixels_taken(std::int64_t width, std::int64_t height, std::int64_t images) const override;

  protected:
    static constexpr std::int64_t overview_crop = 0;

    /// \param values   Settings over the class's defaults.
    /// \param layouts  Layouts of visual tokens it offers; the first one is the model's own.
    /// \throws SettingError  for an invalid setting.
    AnyRes(const Json& values, const std::vector<std::string>& layouts);

    /// As `plan`, of a size that is one.
    virtual TokenPlan plan_of(Size image, std::int64_t images) const;
    /// The visual tokens of the tiles; `tiles` are their number, down and across.
    virtual Plane tile_plane(Size image, const Axes& axes, Size tiles) const = 0;
    /// Gives each crop of an image to `use`, before the steps.
    virtual void cut(const PixelView& image, std::int64_t images,
                     const std::function<void(const PixelView&)>& use) const;

    /// The plane of a single crop.
    ///
    /// \param image, resized, plane  Sizes of the image, of the image in the crop, and of the crop before its steps.
    /// \param taps     Taps of a token.
    /// \param newline  As `Plane::newline`.
    Plane crop_plane(Size image, Size resized, Size plane, std::int64_t taps, Newline newline) const;

    const CropSteps& steps() const { return steps_; }
    const std::string& layout() const { return layout_; }
    /// The taps of a token, the same for all planes of an image.
    virtual std::int64_t taps() const { return 1; }

  private:
    void check_sizes(const Json& values);
    Size tiles_of(Size resolution) const {
        return {resolution.first / shape_.height, resolution.second / shape_.width};
    }

    CropShape shape_;
    CropSteps steps_;
    Size overview_;                ///< what the whole image is squashed to for the first crop
    std::vector<Size> pinpoints_;  ///< sizes of the planes of tiles
    std::string layout_;
};

/// Raises InputError for an image without a pixel.
void check_size(std::int64_t height, std::int64_t width);

/// The pixels of an image.
PixelView view_of(const Image& image);

}  // namespace trtprune::images
