#pragma once

#include <array>
#include <string>

#include "images/tiled.hpp"

namespace trtprune::images {

/// The grid, down and across, of `least` to `most` tiles whose width to height is nearest to the image's; of equal ones
/// the largest that has no more than twice the image's pixels, or the smallest.
Size best_grid(Size image, Size tile, std::int64_t least, std::int64_t most);

/// The image processor of InternVL: tiles of a grid near the image's own shape, and a thumbnail behind them.
///
/// Formulas and rounding are transformers' (5.23).
class InternVl : public Tiled {
  public:
    static constexpr const char* processor_name = "internvl";

    /// \throws EngineDirError  naming the file `where` and the setting, for an invalid one.
    static std::unique_ptr<Processor> from_settings(const Json& settings, const std::string& where);

    std::string name() const override { return processor_name; }

  private:
    explicit InternVl(const Json& values);
    Size tiles_of(Size image) const override { return best_grid(image, edge(), least_, most_); }
    void mark(Size tiles, TokenPlan& plan) const override;
    Pixels stretched(const PixelView& image, Size plane) const override;
    Pixels whole(const PixelView& image, const Pixels& plane) const override;

    std::int64_t least_ = 1, most_ = 1;   ///< bounds of the number of tiles
    std::array<std::string, 2> markers_;  ///< the text in front of an image's visual tokens, and that behind them
};

}  // namespace trtprune::images
