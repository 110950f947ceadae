#pragma once

#include <string>

#include "images/planes.hpp"
#include "images/processor.hpp"
#include "images/settings.hpp"
#include "images/steps.hpp"

/// Images of any resolution that are stretched to a plane of whole tiles, with the whole image behind the tiles.
///
/// The decoder reads tile after tile, row by row.  An image of one tile is a single crop.
namespace trtprune::images {

/// What the processors of this kind share.
class Tiled : public Processor {
  public:
    const CropShape& shape() const override { return shape_; }
    TokenPlan plan(std::int64_t height, std::int64_t width, std::int64_t images) const override;
    Prepared prepare(const Image& image, std::int64_t images) const override;
    std::int64_t pixels_taken(std::int64_t width, std::int64_t height, std::int64_t images) const override;

  protected:
    static constexpr std::int64_t max_tiles = 256;
    static constexpr std::int64_t max_tokens = std::int64_t{1} << 17;

    /// Reads the shape of a crop and the layout.
    ///
    /// \param values  Settings over the class's defaults.
    /// \throws SettingError  for an invalid setting.
    explicit Tiled(const Json& values);

    /// Tiles of an image, down and across.
    virtual Size tiles_of(Size image) const = 0;
    /// Spans of an image of so many tiles, and the text around and between them.
    virtual void mark(Size tiles, TokenPlan& plan) const = 0;
    /// Pixels of the largest picture on the way, beside the image and the arrays.
    virtual std::int64_t pixels_between(Size /*image*/) const { return 0; }
    /// An image stretched to the plane of its tiles.
    virtual Pixels stretched(const PixelView& image, Size plane) const = 0;
    /// The whole image as one crop.
    ///
    /// \param plane  The image stretched to its tiles.
    virtual Pixels whole(const PixelView& image, const Pixels& plane) const = 0;

    /// (height, width) of a crop.
    Size edge() const { return {shape_.height, shape_.width}; }
    /// Crops of an image of so many tiles.
    static std::int64_t crops_of(Size tiles);
    const CropSteps& steps() const { return steps_; }
    void set_steps(const CropSteps& steps) { steps_ = steps; }

  private:
    Plane tile_plane(Size image, Size tiles, std::int64_t tile, std::int64_t first) const;

    CropShape shape_;
    CropSteps steps_;  ///< the filter, and what is done to the pixels of a crop
};

}  // namespace trtprune::images
