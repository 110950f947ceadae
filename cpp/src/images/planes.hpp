#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "images/processor.hpp"
#include "images/steps.hpp"

/// Planes of patches, and their visual tokens line by line.
namespace trtprune::images {

/// One direction of an image on a plane of crops.
struct Axis {
    std::int64_t size = 0;     ///< pixels of the image
    std::int64_t resized = 0;  ///< pixels of the image on the plane
    std::int64_t before = 0;   ///< pixels of padding in front of it; negative if the image is cut
    std::int64_t crop = 0;     ///< pixels of a crop on the plane
    double start = 0;          ///< pixel p of the vision graph's array is pixel `start + p * scale` of the crop
    double scale = 1;
    std::int64_t patch = 0;    ///< pixels of a patch in that array
    std::int64_t patches = 0;  ///< patches of a crop

    /// The border of a patch in the image: pixels, within the image.
    ///
    /// \param border  The place on the plane in patches; whole numbers are borders of patches.
    /// \param end     Whether a border between two crops is the end of the first one, or the beginning of the second.
    double place(double border, bool end) const;
};

/// The vertical and the horizontal axis of an image in the middle of a plane.
using Axes = std::array<Axis, 2>;

/// \param shape     The vision graph's crop.
/// \param geometry  Its place in the crop that is cut from the plane.
/// \param image, resized, plane, crop  Sizes of the image, of the image on the plane, of the plane, and of a crop on
/// it.
Axes axes_of(const CropShape& shape, const Geometry& geometry, Size image, Size resized, Size plane, Size crop);

/// Places from `begin` to before `end`.
struct Range {
    std::int64_t begin = 0;
    std::int64_t end = 0;

    std::int64_t size() const { return end - begin; }
};

/// What a newline token ends.
enum class Newline { none, line, plane };

/// Visual tokens of a rectangle, h lines of w.
struct Plane {
    std::int64_t taps = 1;
    std::vector<std::int32_t> index;                ///< [h, w, taps]: patches of the image, crop after crop
    std::vector<float> weight;                      ///< [h, w, taps]
    std::vector<std::int32_t> crop;                 ///< [h, w]
    std::vector<std::int32_t> rows;                 ///< [h]: places of the tokens on the plane
    std::vector<std::int32_t> columns;              ///< [w]
    std::vector<std::array<double, 2>> vertical;    ///< [h]: beginning and end of the tokens in the image, in pixels
    std::vector<std::array<double, 2>> horizontal;  ///< [w]
    Newline newline = Newline::none;

    std::int64_t height() const { return static_cast<std::int64_t>(rows.size()); }
    std::int64_t width() const { return static_cast<std::int64_t>(columns.size()); }
    /// Tokens of a line, its newline token included.
    std::int64_t line() const { return width() + (newline == Newline::line ? 1 : 0); }
    /// Tokens of the plane, newline tokens included.
    std::int64_t tokens() const { return height() * line() + (newline == Newline::plane ? 1 : 0); }
};

/// How the crops of a plane lie, and what its tokens are read with.
struct Tiles {
    std::int64_t first = 0;   ///< the crop at the top left; the others follow line by line
    std::int64_t across = 1;  ///< crops beside each other
    std::int64_t taps = 1;    ///< taps of a token; all but the first have no weight
    Newline newline = Newline::none;
};

/// A token for each patch of crops side by side; `rows` and `columns` are the patches of the plane that are read.
Plane plane_of_crops(const CropShape& shape, const Axes& axes, Range rows, Range columns, const Tiles& tiles);

/// Patches shrunk bilinearly to `size` (lines, tokens of a line), with four taps.
Plane shrunk_plane(const CropShape& shape, const Axes& axes, Range rows, Range columns, Size size, const Tiles& tiles);

/// The visual tokens of an image, plane after plane.
///
/// \param planes    In the order the decoder reads them, at least one.
/// \param crops     Crops of the image.
/// \param patches   Patches of a crop.
/// \param overview  The crop that shows the whole image, -1 if there is none.
TokenPlan plan_tokens(const std::vector<Plane>& planes, std::int64_t crops, std::int64_t patches,
                      std::int64_t overview);

}  // namespace trtprune::images
