#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trtprune::images {

/// RGB pixels that someone else owns: rows from the top, three bytes a pixel.
struct PixelView {
    const std::uint8_t* data = nullptr;
    std::int64_t height = 0;
    std::int64_t width = 0;
    std::int64_t stride = 0;  ///< bytes from a row to the next

    const std::uint8_t* row(std::int64_t y) const { return data + y * stride; }
};

/// RGB pixels without gaps between the rows.
struct Pixels {
    std::int64_t height = 0;
    std::int64_t width = 0;
    std::vector<std::uint8_t> data;

    Pixels() = default;
    /// A black image.
    Pixels(std::int64_t rows, std::int64_t columns)
        : height(rows), width(columns), data(static_cast<std::size_t>(rows * columns * 3)) {}

    std::uint8_t* row(std::int64_t y) { return data.data() + y * width * 3; }
    const std::uint8_t* row(std::int64_t y) const { return data.data() + y * width * 3; }
    PixelView view() const { return {data.data(), height, width, width * 3}; }
};

}  // namespace trtprune::images
