#pragma once

#include <string>
#include <vector>

#include "images/tiled.hpp"

namespace trtprune::images {

/// The size of an image whose longer side becomes `longest` pixels, the other one an even number; no side has more
/// than 4096.
Size scaled_size(Size image, std::int64_t longest);

/// The plane of whole tiles that an image of such a size is stretched to.
Size plane_size(Size image, std::int64_t tile);

/// The text in front of, between and behind the spans of an image of so many tiles and itself; one tile is no tile.
std::vector<std::string> tile_markers(Size tiles);

/// The image processor of Idefics3 and SmolVLM: tiles of the enlarged image, each a span, and the whole image last.
///
/// The image is scaled to a longest edge, stretched to whole tiles and cut row by row; the last crop is the whole
/// stretched image as one tile.  The prompt says row and column of each tile in front of its visual tokens.  Formulas,
/// rounding and text are transformers' (5.23).
class SmolVlm : public Tiled {
  public:
    static constexpr const char* processor_name = "smolvlm";

    /// \throws EngineDirError  naming the file `where` and the setting, for an invalid one.
    static std::unique_ptr<Processor> from_settings(const Json& settings, const std::string& where);

    std::string name() const override { return processor_name; }

  private:
    explicit SmolVlm(const Json& values);
    std::int64_t most_crops() const;
    Size tiles_of_scaled(Size scaled) const;
    Size tiles_of(Size image) const override;
    void mark(Size tiles, TokenPlan& plan) const override;
    std::int64_t pixels_between(Size image) const override { return area(scaled_size(image, longest_)); }
    Pixels stretched(const PixelView& image, Size plane) const override;
    Pixels whole(const PixelView& image, const Pixels& plane) const override;

    std::int64_t longest_ = 1;  ///< pixels of the longer side of an image before it is stretched to tiles
    bool splitting_ = true;     ///< whether an image is cut into tiles; else it is a single crop
};

}  // namespace trtprune::images
