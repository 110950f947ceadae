#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "images/decoder.hpp"

namespace trtprune::images {

/// What the chunks of a PNG say beside its pixels, read and checked as Pillow reads them.
class PngChunks {
  public:
    /// Where pixels come from: shades, colours, indices of the palette.
    enum class Mode { none, bilevel, shade, shade16, colour, indexed, shade_alpha, colour_alpha };

    /// The region that the pixels of the file fill; all of the image but for animations.
    struct Region {
        std::int64_t left = 0;
        std::int64_t top = 0;
        std::int64_t width = 0;
        std::int64_t height = 0;
    };

    /// Reads all up to the first pixels.
    ///
    /// \throws Unreadable  for a damaged chunk.
    explicit PngChunks(std::string_view data);

    /// Reads what lies behind the pixels; only metadata are of use there.
    ///
    /// \throws Damaged  for a chunk that is cut off.
    void read_rest();

    std::int64_t width = 0;
    std::int64_t height = 0;
    int depth = 0;  ///< bits of a channel
    int colour_type = 0;
    bool interlaced = false;
    Mode mode = Mode::none;
    std::string_view palette;
    std::optional<std::string_view> alphas;        ///< of the palette's colours
    std::optional<std::uint32_t> transparent;      ///< index or shade
    std::optional<std::uint32_t> transparent_rgb;  ///< the lower bytes of a colour, red in the highest
    std::size_t pixels = 0;                        ///< where the first chunk with pixels begins; 0 for none
    std::optional<Region> region;
    bool several = false;

    /// As `Decoder::orientation`.
    int orientation() const;

  private:
    struct Chunk {
        std::string_view name;
        std::size_t start = 0;  ///< of its length
        std::uint32_t length = 0;
    };

    Chunk next_chunk();
    template <class Error>
    void read_chunk(const Chunk& chunk, std::string_view content);
    void read_header(std::string_view content);
    void read_transparency(std::string_view content);
    void read_frame(std::string_view content);
    void read_animation(std::string_view content);
    void read_text(std::string_view name, std::string_view content);

    std::string_view data_;
    Reader reader_;
    std::optional<std::uint32_t> frames_;
    std::optional<std::uint32_t> sequence_;
    std::optional<std::string> exif_;
    std::optional<std::string> raw_profile_;
    std::string xmp_;
};

}  // namespace trtprune::images
