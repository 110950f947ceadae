#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "images/pixels.hpp"
#include "images/settings.hpp"

/// The steps from 8-bit RGB pixels to one array of the vision graph: resize, centre crop, rescale, normalise.
///
/// They are those of transformers' Pillow processors, with the same order and rounding, so that the numbers are equal.
namespace trtprune::images {

/// The place of the model's input in the image: pixel (x, y) of the input is (left + x * scale_x, top + y * scale_y).
///
/// All in pixels of the upright image; the input is `width` × `height` pixels.
struct Geometry {
    double left = 0;
    double top = 0;
    double scale_x = 1;
    double scale_y = 1;
    std::int64_t width = 0;
    std::int64_t height = 0;
};

/// The settings of the four steps; not set: the step is omitted.
class CropSteps {
  public:
    CropSteps() = default;

    /// Reads transformers' settings.
    ///
    /// \throws SettingError  for an invalid one.
    explicit CropSteps(const Json& values);

    const std::optional<ResizeTarget>& resize() const { return resize_; }
    const std::optional<Size>& crop() const { return crop_; }
    /// Pillow's number of the filter.
    int filter() const { return filter_; }

    Size size_after_resize(Size size) const;
    /// Size after all steps.
    Size size_after(Size size) const { return crop_ ? *crop_ : size_after_resize(size); }
    /// The first two steps.
    Pixels pixels(const PixelView& image) const;
    /// The last two steps: pixels to float32 [3, height, width].
    void values(const Pixels& crop, float* result) const;
    /// The place of the result in pixels of an image; parts of it may be outside, where zeros are.
    Geometry geometry(Size size) const;

  private:
    void fill_table(std::optional<double> factor, const std::optional<Channels>& mean,
                    const std::optional<Channels>& deviation);

    std::optional<ResizeTarget> resize_;
    int filter_ = 3;
    std::optional<Size> crop_;  ///< the part cut from the middle; a smaller image is surrounded by zeros
    std::array<std::array<float, 256>, 3> table_{};  ///< the result of the last two steps for each 8-bit value
};

/// The number of an image's pixels, the largest number where that does not fit.
std::int64_t area(Size size);

/// An image in the middle of a square of a colour.
Pixels padded_square(const PixelView& image, const std::array<std::uint8_t, 3>& colour);

}  // namespace trtprune::images
