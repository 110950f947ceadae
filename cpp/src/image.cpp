#include <cstring>
#include <limits>
#include <string>
#include <trtprune/error.hpp>
#include <trtprune/image.hpp>
#include <utility>
#include <vector>

#include "images/pictures.hpp"

namespace trtprune {

namespace {

constexpr const char* kind = "8 bits a channel, three bytes a pixel: red, green, blue";

// The pixels as their owner's pointer, without a copy.
std::shared_ptr<const std::uint8_t> shared(images::Pixels&& pixels) {
    const auto owner = std::make_shared<const std::vector<std::uint8_t>>(std::move(pixels.data));
    return {owner, owner->data()};
}

}  // namespace

Image Image::from_file(const std::string& path, const ImageOptions& options) {
    images::Pixels pixels = images::picture_from_file(path, options);
    const std::int64_t width = pixels.width;
    const std::int64_t height = pixels.height;
    return {shared(std::move(pixels)), width, height};
}

Image Image::from_memory(const void* data, std::size_t size, const ImageOptions& options) {
    if (data == nullptr && size != 0) throw InputError("the picture: its bytes are NULL", "the bytes of an image file");
    images::Pixels pixels = images::picture_from_memory(static_cast<const std::uint8_t*>(data), size, options);
    const std::int64_t width = pixels.width;
    const std::int64_t height = pixels.height;
    return {shared(std::move(pixels)), width, height};
}

Image Image::from_rgb(const std::uint8_t* data, std::int64_t width, std::int64_t height, std::int64_t stride) {
    if (width < 1 || height < 1) {
        throw InputError("the array: is empty (" + std::to_string(width) + " × " + std::to_string(height) + ")",
                         "a picture has at least one pixel");
    }
    if (data == nullptr) throw InputError("the array: its pixels are NULL", kind);
    // What lies in memory is smaller than this.
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / 8;
    const bool large = width > most / 3 || height > most / (3 * width) || stride > most / height;
    if (large) {
        throw InputError("the array: " + std::to_string(width) + " × " + std::to_string(height) +
                             " pixels are more than any memory holds",
                         "give width and height in pixels, and the stride in bytes");
    }
    const std::int64_t bytes = 3 * width;
    if (stride == 0) stride = bytes;
    if (stride < bytes) {
        throw InputError(
            "stride=" + std::to_string(stride) + ": must be at least " + std::to_string(bytes) + ", the bytes of a row",
            "0 for rows without gaps between them");
    }
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(bytes * height));
    for (std::int64_t y = 0; y < height; ++y) {
        std::memcpy(pixels.data() + y * bytes, data + y * stride, static_cast<std::size_t>(bytes));
    }
    const auto owner = std::make_shared<const std::vector<std::uint8_t>>(std::move(pixels));
    return {std::shared_ptr<const std::uint8_t>(owner, owner->data()), width, height};
}

}  // namespace trtprune
