#pragma once

#include <cstdint>
#include <vector>

#include "images/processor.hpp"
#include "images/settings.hpp"

/// The sizes of a packed tower: one that reads an image's patches in a row, whatever the image's size.
///
/// Patches come in merge order: a visual token is a square of patches, whose rows stand behind one another.
namespace trtprune::images {

/// A slot of a window that holds no visual token.
constexpr std::int64_t no_token = -1;

/// The patches that a packed tower reads.
struct PackedShape {
    std::int64_t patch = 0;   ///< side of a patch in pixels
    std::int64_t merge = 0;   ///< patches on a side of a visual token
    std::int64_t frames = 0;  ///< frames of a patch; an image is as many equal ones
    std::int64_t window = 0;  ///< visual tokens on a side of an attention window; 0: no windows

    PackedShape() = default;
    /// The member `packed` of a processor's settings.
    ///
    /// \throws SettingError  for an invalid one.
    explicit PackedShape(const Json& settings);

    /// Side of a visual token in pixels.
    std::int64_t factor() const { return patch * merge; }
    /// Numbers of a patch: channels, frames, rows and columns.
    std::int64_t width() const { return 3 * frames * patch * patch; }

    /// The vision graph's inputs beside the pixels, by name: `token_positions` [visual_tokens, 2], and of a tower with
    /// windows `window_index` [windows, slots] and `window_places` [visual_tokens].
    ///
    /// \param rows, columns  Visual tokens of the image.
    std::map<std::string, IndexArray> arrays(std::int64_t rows, std::int64_t columns) const;

    /// The patches of an image in merge order, each channel by channel and frame by frame: [patches, width].
    ///
    /// \param values  [3, size], sides multiples of `factor`.
    std::vector<float> rows(const std::vector<float>& values, Size size) const;
};

}  // namespace trtprune::images
