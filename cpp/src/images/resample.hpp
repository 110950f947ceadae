#pragma once

#include "images/pixels.hpp"

namespace trtprune::images {

/// An image at another size, each byte as `Image.resize` of Pillow 13 gives it for mode RGB.
///
/// Two passes, rows first, with coefficients in fixed point (22 bits) and each pass rounded to 8 bits; the memory
/// beside the result is that of the rows under the filter at one time.
///
/// \param image   At least one pixel.
/// \param filter  Pillow's number: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
Pixels resample(const PixelView& image, std::int64_t height, std::int64_t width, int filter);

}  // namespace trtprune::images
