#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <trtprune/export.hpp>

namespace trtprune {

/// Limits of reading an image.
struct ImageOptions {
    std::int64_t max_pixels = 0;  ///< largest number of pixels; 0: `$TRTPRUNE_MAX_PIXELS`, or 64 Mi
    bool strict = false;          ///< refuse animations, instead of taking their first frame
};

/// An upright RGB image with 8 bits a channel, in memory; copies share the pixels, which never change.
class TRTPRUNE_API Image {
  public:
    /// Reads a JPEG, PNG, WebP, BMP or GIF file (its first frame), upright by its EXIF orientation.
    ///
    /// Gray, palette, alpha, 16 bit and CMYK become RGB as in the Python package.
    ///
    /// \throws InputError  for a file that is missing, of another format, damaged, or larger than the limit.
    static Image from_file(const std::string& path, const ImageOptions& options = {});

    /// The same from the bytes of such a file.
    static Image from_memory(const void* data, std::size_t size, const ImageOptions& options = {});

    /// Copies pixels in rows from the top, three bytes (red, green, blue) a pixel.
    ///
    /// \param data    The first byte of the first row.
    /// \param width   Pixels of a row.
    /// \param height  Rows.
    /// \param stride  Bytes from a row to the next; 0: `3 * width`.
    /// \throws InputError  for NULL, an image without a pixel, or a stride that is negative or below `3 * width`.
    static Image from_rgb(const std::uint8_t* data, std::int64_t width, std::int64_t height, std::int64_t stride = 0);

    std::int64_t width() const noexcept { return width_; }
    std::int64_t height() const noexcept { return height_; }
    /// `height * width * 3` bytes, rows from the top, without gaps.
    const std::uint8_t* data() const noexcept { return pixels_.get(); }

  private:
    Image(std::shared_ptr<const std::uint8_t> pixels, std::int64_t width, std::int64_t height)
        : pixels_(std::move(pixels)), width_(width), height_(height) {}

    std::shared_ptr<const std::uint8_t> pixels_;
    std::int64_t width_;
    std::int64_t height_;
};

}  // namespace trtprune
