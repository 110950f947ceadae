#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "images/pixels.hpp"

/// What the decoders of image files share.  Each is held to Pillow 13: the same files are opened, each pixel is the
/// same.
namespace trtprune::images {

/// A file whose header is not that of an image this library reads.
class Unreadable : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// An image that cannot be decoded; the message is the reason.
class Damaged : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// An image above Pillow's own limit of pixels.
class TooLarge : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// Pillow's limit, which no limit of a caller exceeds.
constexpr std::int64_t pillow_pixels = 178956970;

constexpr const char* truncated_file = "image file is truncated";
constexpr const char* truncated_read = "Truncated File Read";
constexpr const char* broken_stream = "broken data stream when reading image file";
constexpr const char* no_pixels = "cannot load this image";

/// The bytes of a file, read in order.
class Reader {
  public:
    explicit Reader(std::string_view data) : data_(data) {}

    std::size_t position() const { return position_; }
    std::size_t left() const { return data_.size() - position_; }
    void seek(std::size_t position) { position_ = position < data_.size() ? position : data_.size(); }

    /// The next `count` bytes, or as many as there are.
    std::string_view read(std::size_t count) {
        const std::string_view part = data_.substr(position_, count);
        position_ += part.size();
        return part;
    }

    /// The next `count` bytes.
    ///
    /// \throws Error  if there are fewer.
    template <class Error>
    std::string_view exactly(std::size_t count) {
        if (left() < count) throw Error(truncated_read);
        return read(count);
    }

  private:
    std::string_view data_;
    std::size_t position_ = 0;
};

inline std::uint32_t byte_at(std::string_view data, std::size_t place) {
    return static_cast<std::uint8_t>(data[place]);
}

/// Numbers of 2 and 4 bytes, least or most significant byte first; the bytes must be there.
inline std::uint32_t u16le(std::string_view data, std::size_t place) {
    return byte_at(data, place) | byte_at(data, place + 1) << 8;
}
inline std::uint32_t u32le(std::string_view data, std::size_t place) {
    return u16le(data, place) | u16le(data, place + 2) << 16;
}
inline std::uint32_t u16be(std::string_view data, std::size_t place) {
    return byte_at(data, place) << 8 | byte_at(data, place + 1);
}
inline std::uint32_t u32be(std::string_view data, std::size_t place) {
    return u16be(data, place) << 16 | u16be(data, place + 2);
}

inline bool starts_with(std::string_view data, std::string_view prefix) {
    return data.substr(0, prefix.size()) == prefix;
}

/// A channel on white, as Pillow composes it.
inline std::uint8_t on_white(std::uint32_t value, std::uint32_t alpha) {
    // 128 is Pillow's extra precision; the division by 255 is rounded.
    const std::uint32_t sum = value * (alpha * 128) + 255 * ((255 - alpha) * 128) + (0x80U << 7);
    return static_cast<std::uint8_t>(((sum >> 8) + sum) >> 8 >> 7);
}

/// 256 colours, red, green, blue and alpha; those that a file leaves out are black.
struct Palette {
    std::uint8_t colours[256][4];

    Palette() {
        for (auto& colour : colours) {
            colour[0] = colour[1] = colour[2] = 0;
            colour[3] = 255;
        }
    }
    /// Writes a pixel, on white if it is transparent.
    void write(std::uint32_t index, std::uint8_t* pixel) const {
        const auto& colour = colours[index];
        for (int i = 0; i < 3; ++i) pixel[i] = on_white(colour[i], colour[3]);
    }
};

/// An image file whose header has been read.
class Decoder {
  public:
    virtual ~Decoder() = default;

    std::int64_t width = 0;
    std::int64_t height = 0;
    bool several = false;  ///< an animation, of which the first frame is taken

    /// The pixels in the order of the file.
    ///
    /// \throws Damaged  for a damaged file.
    virtual Pixels decode() = 0;

    /// EXIF's orientation, 1 to 8, once the pixels are decoded; 1 for anything else.
    ///
    /// \throws Damaged  for metadata that Pillow refuses the image for.
    virtual int orientation() { return 1; }
};

/// Decoders by format; the bytes must live as long as they.
///
/// \throws Unreadable  for a damaged header.
std::unique_ptr<Decoder> open_png(std::string_view data);
std::unique_ptr<Decoder> open_jpeg(std::string_view data);
std::unique_ptr<Decoder> open_webp(std::string_view data);
std::unique_ptr<Decoder> open_bmp(std::string_view data);
std::unique_ptr<Decoder> open_gif(std::string_view data);

}  // namespace trtprune::images
