#include "images/steps.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "images/resample.hpp"

namespace trtprune::images {

namespace {

// First row of the crop; negative if the image is smaller and surrounded by zeros.
std::int64_t crop_start(std::int64_t size, std::int64_t crop) {
    return crop <= size ? (size - crop) / 2 : -((crop - size + 1) / 2);
}

Pixels center_crop(const PixelView& image, Size crop) {
    Pixels result(crop.first, crop.second);
    const std::int64_t top = crop_start(image.height, crop.first);
    const std::int64_t left = crop_start(image.width, crop.second);
    const std::int64_t begin = std::max<std::int64_t>(0, left);
    const std::int64_t end = std::min(image.width, left + crop.second);
    for (std::int64_t y = std::max<std::int64_t>(0, top); y < std::min(image.height, top + crop.first); ++y) {
        std::memcpy(result.row(y - top) + (begin - left) * 3, image.row(y) + begin * 3,
                    static_cast<std::size_t>((end - begin) * 3));
    }
    return result;
}

}  // namespace

CropSteps::CropSteps(const Json& values) {
    const bool normalize = flag(values, "do_normalize");
    std::optional<Channels> mean;
    std::optional<Channels> deviation;
    if (normalize) {
        mean = channels("image_mean", member(values, "image_mean"));
        deviation = channels("image_std", member(values, "image_std"));
        for (const double value : *deviation) {
            if (static_cast<float>(value) != 0.0F) continue;
            throw SettingError("image_std " + tuple_repr(*deviation) + " has a zero: every picture would be infinite");
        }
    }
    if (flag(values, "do_resize")) resize_ = resize_target(values);
    filter_ = resample_filter(member(values, "resample"));
    if (flag(values, "do_center_crop")) crop_ = height_and_width("crop_size", member(values, "crop_size"));
    std::optional<double> factor;
    if (flag(values, "do_rescale")) factor = number("rescale_factor", member(values, "rescale_factor"));
    fill_table(factor, mean, deviation);
}

void CropSteps::fill_table(std::optional<double> factor, const std::optional<Channels>& mean,
                           const std::optional<Channels>& deviation) {
    bool finite = true;
    for (std::size_t channel = 0; channel < 3; ++channel) {
        for (std::size_t level = 0; level < 256; ++level) {
            // In double precision and back: transformers rescales so, and the last bit of a product of floats would
            // differ.
            const auto whole = static_cast<double>(level);
            const double scaled = factor ? whole * *factor : whole;
            // A double beyond every float converts to no defined value.
            finite = finite && std::abs(scaled) <= static_cast<double>(std::numeric_limits<float>::max());
            float value = finite ? static_cast<float>(scaled) : 0.0F;
            if (mean) {
                value = (value - static_cast<float>((*mean)[channel])) / static_cast<float>((*deviation)[channel]);
            }
            finite = finite && std::isfinite(value);
            table_[channel][level] = value;
        }
    }
    if (!finite) throw SettingError("rescale_factor, image_mean and image_std lead beyond every float32");
}

Size CropSteps::size_after_resize(Size size) const {
    if (!resize_) return size;
    if (!resize_->shortest) return {resize_->first, resize_->second};
    const std::int64_t shorter = std::min(size.first, size.second);
    const std::int64_t longer = std::max(size.first, size.second);
    // Truncated, not rounded, as in torchvision and transformers.
    const double other =
        static_cast<double>(resize_->first) * static_cast<double>(longer) / static_cast<double>(shorter);
    const auto length = static_cast<std::int64_t>(std::min(other, 1e18));
    return size.first <= size.second ? Size{resize_->first, length} : Size{length, resize_->first};
}

Pixels CropSteps::pixels(const PixelView& image) const {
    const Size size = size_after_resize({image.height, image.width});
    if (crop_ && size == Size{image.height, image.width}) return center_crop(image, *crop_);
    Pixels resized = resample(image, size.first, size.second, filter_);
    return crop_ && *crop_ != size ? center_crop(resized.view(), *crop_) : resized;
}

void CropSteps::values(const Pixels& crop, float* result) const {
    const auto count = static_cast<std::size_t>(crop.height * crop.width);
    const std::uint8_t* const pixels = crop.data.data();
    for (std::size_t channel = 0; channel < 3; ++channel) {
        const auto& table = table_[channel];
        for (std::size_t i = 0; i < count; ++i) *result++ = table[pixels[i * 3 + channel]];
    }
}

Geometry CropSteps::geometry(Size size) const {
    Size after = size_after_resize(size);
    Geometry result;
    result.scale_x = static_cast<double>(size.second) / static_cast<double>(after.second);
    result.scale_y = static_cast<double>(size.first) / static_cast<double>(after.first);
    if (crop_) {
        result.top = static_cast<double>(crop_start(after.first, crop_->first)) * result.scale_y;
        result.left = static_cast<double>(crop_start(after.second, crop_->second)) * result.scale_x;
        after = *crop_;
    }
    result.width = after.second;
    result.height = after.first;
    return result;
}

std::int64_t area(Size size) {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    return size.first > 0 && size.second > most / size.first ? most : size.first * size.second;
}

Pixels padded_square(const PixelView& image, const std::array<std::uint8_t, 3>& colour) {
    const std::int64_t side = std::max(image.height, image.width);
    Pixels square(side, side);
    for (std::int64_t i = 0; i < side * side; ++i) std::memcpy(square.data.data() + i * 3, colour.data(), 3);
    const std::int64_t top = (side - image.height) / 2;
    const std::int64_t left = (side - image.width) / 2;
    for (std::int64_t y = 0; y < image.height; ++y) {
        std::memcpy(square.row(top + y) + left * 3, image.row(y), static_cast<std::size_t>(image.width * 3));
    }
    return square;
}

}  // namespace trtprune::images
