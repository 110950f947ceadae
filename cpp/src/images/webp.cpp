#include <webp/decode.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "images/decoder.hpp"
#include "images/exif.hpp"

// WebP by libwebp; of an animation, the first frame on its canvas.
namespace trtprune::images {

namespace {

constexpr std::uint32_t exif_flag = 8;
constexpr std::uint32_t xmp_flag = 4;

// A part of a WebP file.
struct Chunk {
    std::string_view name;
    std::string_view content;
};

// The next part, which must be whole; not set at the end.
std::optional<Chunk> next_chunk(Reader& reader) {
    if (reader.left() == 0) return {};
    Chunk chunk;
    chunk.name = reader.exactly<Unreadable>(4);
    const std::uint32_t size = u32le(reader.exactly<Unreadable>(4), 0);
    chunk.content = reader.exactly<Unreadable>(size);
    if (size % 2 != 0) reader.read(1);
    return chunk;
}

std::uint32_t u24le(std::string_view data, std::size_t place) {
    return u16le(data, place) | byte_at(data, place + 2) << 16;
}

const std::uint8_t* bytes_of(std::string_view data) {
    return reinterpret_cast<const std::uint8_t*>(data.data());
}

class Webp : public Decoder {
  public:
    explicit Webp(std::string_view data) {
        check_canvas(data);
        Reader head(data);
        head.read(4);
        const std::uint32_t size = u32le(head.exactly<Unreadable>(4), 0);
        // What lies behind is not the file's; what is missing is not made up.
        if (size < 12 || size > data.size() - 8) throw Unreadable(truncated_read);
        file_ = data.substr(0, std::size_t{size} + 8);
        WebPBitstreamFeatures features{};
        if (WebPGetFeatures(bytes_of(file_), file_.size(), &features) != VP8_STATUS_OK) throw Unreadable("no features");
        has_alpha_ = features.has_alpha != 0;
        animated_ = features.has_animation != 0;
        width = features.width;
        height = features.height;
        read_chunks();
    }

    Pixels decode() override {
        Pixels pixels(height, width);
        if (has_alpha_) std::fill(pixels.data.begin(), pixels.data.end(), std::uint8_t{255});
        std::vector<std::uint8_t> plane(static_cast<std::size_t>(frame_width_ * frame_height_ * 4));
        const std::string_view image = animated_ ? frame_ : file_;
        const auto stride = static_cast<int>(frame_width_ * 4);
        if (WebPDecodeRGBAInto(bytes_of(image), image.size(), plane.data(), plane.size(), stride) == nullptr) {
            throw Damaged("failed to decode next frame in WebP file");
        }
        const std::uint8_t* sample = plane.data();
        for (std::int64_t y = 0; y < frame_height_; ++y) {
            std::uint8_t* pixel = pixels.row(top_ + y) + left_ * 3;
            for (std::int64_t x = 0; x < frame_width_; ++x, sample += 4, pixel += 3) {
                const std::uint32_t alpha = has_alpha_ ? sample[3] : 255;
                for (int i = 0; i < 3; ++i) pixel[i] = on_white(sample[i], alpha);
            }
        }
        return pixels;
    }

    int orientation() override { return orientation_of(exif_, xmp_); }

  private:
    // Before anything else is checked, as in Pillow.
    static void check_canvas(std::string_view data) {
        if (data.size() < 30 || data.substr(12, 4) != "VP8X") return;
        const std::int64_t wide = 1 + static_cast<std::int64_t>(u24le(data, 24));
        if (wide * (1 + static_cast<std::int64_t>(u24le(data, 27))) > pillow_pixels) throw TooLarge("the canvas");
    }

    // As libwebp's demuxer: metadata count if the header announces them, frames behind the animation's own chunk.
    void read_chunks() {
        Reader reader(file_);
        reader.seek(12);
        std::uint32_t flags = 0;
        bool has_image = false;
        bool has_animation = false;
        int frames = 0;
        frame_width_ = width;
        frame_height_ = height;
        while (const std::optional<Chunk> chunk = next_chunk(reader)) {
            const auto& [name, content] = *chunk;
            if (name == "VP8X" && !content.empty()) flags = byte_at(content, 0);
            if (name == "EXIF" && (flags & exif_flag) != 0 && !exif_) exif_ = std::string(content);
            if (name == "XMP " && (flags & xmp_flag) != 0 && xmp_.empty()) xmp_ = content;
            has_image = has_image || name == "VP8 " || name == "VP8L";
            has_animation = has_animation || name == "ANIM";
            if (name != "ANMF" || !animated_) continue;
            if (!has_animation) throw Unreadable("a frame in front of the animation");
            if (++frames == 1) read_frame(content);
        }
        if (animated_ ? frames == 0 : !has_image) throw Unreadable("no frame");
        several = frames > 1;
    }

    // The frame's own data say how large it is.
    void read_frame(std::string_view content) {
        if (content.size() < 16) throw Unreadable(truncated_read);
        left_ = 2 * static_cast<std::int64_t>(u24le(content, 0));
        top_ = 2 * static_cast<std::int64_t>(u24le(content, 3));
        frame_ = content.substr(16);
        WebPBitstreamFeatures features{};
        if (WebPGetFeatures(bytes_of(frame_), frame_.size(), &features) != VP8_STATUS_OK)
            throw Unreadable("no features");
        frame_width_ = features.width;
        frame_height_ = features.height;
        if (left_ + frame_width_ > width || top_ + frame_height_ > height)
            throw Unreadable("a frame beyond the canvas");
    }

    std::string_view file_;
    bool has_alpha_ = false;
    bool animated_ = false;
    std::string_view frame_;
    std::int64_t left_ = 0;
    std::int64_t top_ = 0;
    std::int64_t frame_width_ = 0;
    std::int64_t frame_height_ = 0;
    std::optional<std::string> exif_;
    std::string_view xmp_;
};

}  // namespace

std::unique_ptr<Decoder> open_webp(std::string_view data) {
    return std::make_unique<Webp>(data);
}

}  // namespace trtprune::images
