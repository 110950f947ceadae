#include "images/resample.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace trtprune::images {

namespace {

// Two bits above the eight of a pixel hold sums of filters with negative parts.
constexpr int precision_bits = 32 - 8 - 2;
constexpr std::int32_t half = std::int32_t{1} << (precision_bits - 1);
// Coefficients that are held at a time.
constexpr std::size_t block_coefficients = std::size_t{1} << 21;
// Wider images are filtered along their rows block by block; they have few rows.
constexpr std::int64_t wide = std::int64_t{1} << 18;
constexpr double pi = 3.14159265358979323846;

struct Filter {
    double (*weight)(double x);
    double support;  ///< half of the width, in pixels of the smaller image
};

double box(double x) {
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

double bilinear(double x) {
    x = std::abs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

double hamming(double x) {
    x = std::abs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x *= pi;
    // Pillow's constants are of single precision.
    return std::sin(x) / x * (static_cast<double>(0.54F) + static_cast<double>(0.46F) * std::cos(x));
}

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= pi;
    return std::sin(x) / x;
}

double lanczos(double x) {
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

Filter filter_of(int number) {
    switch (number) {
        case 1:
            return {lanczos, 3.0};
        case 2:
            return {bilinear, 1.0};
        case 4:
            return {box, 0.5};
        case 5:
            return {hamming, 1.0};
        default:
            return {bicubic, 2.0};
    }
}

// One direction of an image at another size.
class Direction {
  public:
    Direction(std::int64_t size, std::int64_t result, const Filter& filter)
        : size_(size),
          // Pillow holds the borders of the image in single precision.
          scale_(static_cast<double>(static_cast<float>(size)) / static_cast<double>(result)),
          filter_(filter),
          stretch_(std::max(scale_, 1.0)),
          support_(filter.support * stretch_) {}

    // First pixel under the filter of a place of the result.
    std::int64_t first(std::int64_t place) const {
        return std::max<std::int64_t>(0, static_cast<std::int64_t>(center(place) - support_ + 0.5));
    }

    // The pixel behind the last one under the filter.
    std::int64_t last(std::int64_t place) const {
        return std::min(size_, static_cast<std::int64_t>(center(place) + support_ + 0.5));
    }

    // Appends the coefficients of a place's pixels.
    void append(std::int64_t place, std::vector<std::int32_t>& coefficients) {
        const std::int64_t begin = first(place);
        const std::int64_t end = last(place);
        const double middle = center(place);
        const double inverse = 1.0 / stretch_;
        weights_.clear();
        double sum = 0;
        for (std::int64_t pixel = begin; pixel < end; ++pixel) {
            // In this order of additions, as Pillow has it.
            weights_.push_back(filter_.weight((static_cast<double>(pixel) - middle + 0.5) * inverse));
            sum += weights_.back();
        }
        for (double weight : weights_) {
            if (sum != 0.0) weight /= sum;
            const double scaled = weight * (1 << precision_bits);
            coefficients.push_back(static_cast<std::int32_t>(weight < 0 ? -0.5 + scaled : 0.5 + scaled));
        }
    }

  private:
    double center(std::int64_t place) const { return (static_cast<double>(place) + 0.5) * scale_; }

    std::int64_t size_;
    double scale_;
    Filter filter_;
    double stretch_;
    double support_;
    std::vector<double> weights_;
};

std::uint8_t clipped(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> precision_bits, 0, 255));
}

// The coefficients of some places of the result, one behind the other.
struct Block {
    std::int64_t start = 0;
    std::vector<std::int64_t> first;
    std::vector<std::size_t> offset{0};
    std::vector<std::int32_t> coefficients;
};

// Places of the result from `start` on, as many as have no more than a limit of coefficients, but at least one.
Block block_from(Direction& direction, std::int64_t start, std::int64_t result) {
    Block block;
    block.start = start;
    for (std::int64_t place = start; place < result && block.coefficients.size() < block_coefficients; ++place) {
        block.first.push_back(direction.first(place));
        direction.append(place, block.coefficients);
        block.offset.push_back(block.coefficients.size());
    }
    return block;
}

// One row, filtered along itself.
void filter_row(const std::uint8_t* row, const Block& block, std::uint8_t* result) {
    const std::int32_t* const coefficients = block.coefficients.data();
    std::uint8_t* out = result + block.start * 3;
    for (std::size_t place = 0; place < block.first.size(); ++place, out += 3) {
        const std::uint8_t* pixel = row + block.first[place] * 3;
        std::int32_t red = half;
        std::int32_t green = half;
        std::int32_t blue = half;
        for (std::size_t i = block.offset[place]; i < block.offset[place + 1]; ++i, pixel += 3) {
            const std::int32_t k = coefficients[i];
            red += pixel[0] * k;
            green += pixel[1] * k;
            blue += pixel[2] * k;
        }
        out[0] = clipped(red);
        out[1] = clipped(green);
        out[2] = clipped(blue);
    }
}

// Rows at the result's width, kept as long as a filter may still need them.
class Rows {
  public:
    Rows(const PixelView& image, std::int64_t width, const Filter& filter, std::int64_t kept)
        : image_(image), width_(width), filtered_(width != image.width), kept_(kept) {
        if (!filtered_) return;
        Direction direction(image.width, width, filter);
        block_ = block_from(direction, 0, width);
        ring_.resize(static_cast<std::size_t>(kept * width * 3));
    }

    // Makes the rows up to `end` available.
    void advance(std::int64_t begin, std::int64_t end) {
        if (!filtered_) return;
        // Rows between two filters are never read.
        next_ = std::max(next_, begin);
        for (; next_ < end; ++next_) {
            filter_row(image_.row(next_), block_, place(next_));
        }
    }

    const std::uint8_t* row(std::int64_t y) { return filtered_ ? place(y) : image_.row(y); }

  private:
    std::uint8_t* place(std::int64_t y) { return ring_.data() + y % kept_ * width_ * 3; }

    PixelView image_;
    std::int64_t width_;
    bool filtered_;
    std::int64_t kept_;
    std::int64_t next_ = 0;
    Block block_;
    std::vector<std::uint8_t> ring_;
};

// A wide image at another width.
Pixels narrowed(const PixelView& image, std::int64_t width, const Filter& filter) {
    Pixels result(image.height, width);
    Direction direction(image.width, width, filter);
    for (std::int64_t start = 0; start < width;) {
        const Block block = block_from(direction, start, width);
        for (std::int64_t y = 0; y < image.height; ++y) filter_row(image.row(y), block, result.row(y));
        start += static_cast<std::int64_t>(block.first.size());
    }
    return result;
}

// Pillow's resize without a filter steps through the image by addition, so that its rounding adds up.
Pixels nearest(const PixelView& image, std::int64_t height, std::int64_t width) {
    Pixels result(height, width);
    const double step_x = static_cast<double>(static_cast<float>(image.width)) / static_cast<double>(width);
    const double step_y = static_cast<double>(static_cast<float>(image.height)) / static_cast<double>(height);
    std::vector<std::int64_t> columns;
    double x = step_x * 0.5;
    for (std::int64_t i = 0; i < width; ++i, x += step_x) columns.push_back(static_cast<std::int64_t>(x));
    double y = step_y * 0.5;
    for (std::int64_t i = 0; i < height; ++i, y += step_y) {
        const auto line = static_cast<std::int64_t>(y);
        if (line >= image.height) continue;
        std::uint8_t* out = result.row(i);
        for (std::size_t k = 0; k < columns.size(); ++k) {
            if (columns[k] < image.width) std::memcpy(out + k * 3, image.row(line) + columns[k] * 3, 3);
        }
    }
    return result;
}

Pixels copy_of(const PixelView& image) {
    Pixels result(image.height, image.width);
    const auto bytes = static_cast<std::size_t>(image.width * 3);
    for (std::int64_t y = 0; y < image.height; ++y) std::memcpy(result.row(y), image.row(y), bytes);
    return result;
}

// The weighted sum of rows, `row(y)` from `first` on.
template <class Row>
void filter_column(const Row& row, std::int64_t first, const std::vector<std::int32_t>& coefficients,
                   std::vector<std::int32_t>& sums, std::uint8_t* result) {
    std::fill(sums.begin(), sums.end(), half);
    std::int32_t* const sum = sums.data();
    const std::size_t count = sums.size();
    for (std::size_t k = 0; k < coefficients.size(); ++k) {
        const std::uint8_t* const bytes = row(first + static_cast<std::int64_t>(k));
        const std::int32_t coefficient = coefficients[k];
        for (std::size_t i = 0; i < count; ++i) sum[i] += bytes[i] * coefficient;
    }
    for (std::size_t i = 0; i < count; ++i) result[i] = clipped(sum[i]);
}

Pixels rows_then_columns(const PixelView& image, std::int64_t height, std::int64_t width, const Filter& filter) {
    Direction down(image.height, height, filter);
    const bool vertical = height != image.height;
    std::int64_t kept = 1;
    for (std::int64_t y = 0; vertical && y < height; ++y) kept = std::max(kept, down.last(y) - down.first(y));
    Rows rows(image, width, filter, kept);
    Pixels result(height, width);
    std::vector<std::int32_t> sums(static_cast<std::size_t>(width * 3));
    std::vector<std::int32_t> coefficients;
    for (std::int64_t y = 0; y < height; ++y) {
        if (!vertical) {
            rows.advance(y, y + 1);
            std::memcpy(result.row(y), rows.row(y), static_cast<std::size_t>(width * 3));
            continue;
        }
        coefficients.clear();
        down.append(y, coefficients);
        rows.advance(down.first(y), down.last(y));
        filter_column([&](std::int64_t i) { return rows.row(i); }, down.first(y), coefficients, sums, result.row(y));
    }
    return result;
}

Pixels columns_then_rows(const PixelView& image, std::int64_t height, std::int64_t width, const Filter& filter) {
    Direction down(image.height, height, filter);
    Direction along(image.width, width, filter);
    const Block block = block_from(along, 0, width);
    Pixels result(height, width);
    std::vector<std::uint8_t> line(static_cast<std::size_t>(image.width * 3));
    std::vector<std::int32_t> sums(line.size());
    std::vector<std::int32_t> coefficients;
    for (std::int64_t y = 0; y < height; ++y) {
        coefficients.clear();
        down.append(y, coefficients);
        filter_column([&](std::int64_t i) { return image.row(i); }, down.first(y), coefficients, sums, line.data());
        filter_row(line.data(), block, result.row(y));
    }
    return result;
}

}  // namespace

Pixels resample(const PixelView& image, std::int64_t height, std::int64_t width, int filter) {
    if (height == image.height && width == image.width) return copy_of(image);
    if (filter == 0) return nearest(image, height, width);
    const Filter kernel = filter_of(filter);
    // Pillow's rule, which decides how the two roundings fall.
    const std::int64_t fewer_rows = image.height - height;
    const bool columns_first = fewer_rows > 0 && fewer_rows > (image.width - width) * 2;
    const bool both = height != image.height && width != image.width;
    if (std::max(image.width, width) > wide && width != image.width) {
        if (both && columns_first) {
            return narrowed(resample(image, height, image.width, filter).view(), width, kernel);
        }
        return resample(narrowed(image, width, kernel).view(), height, width, filter);
    }
    return both && columns_first ? columns_then_rows(image, height, width, kernel)
                                 : rows_then_columns(image, height, width, kernel);
}

}  // namespace trtprune::images
