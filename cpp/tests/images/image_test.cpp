#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <trtprune/error.hpp>
#include <trtprune/image.hpp>
#include <vector>

#include "images/processor.hpp"

using trtprune::Image;
using trtprune::InputError;

namespace {

std::string message_of(const std::uint8_t* data, std::int64_t width, std::int64_t height, std::int64_t stride) {
    try {
        Image::from_rgb(data, width, height, stride);
    } catch (const InputError& error) {
        CHECK(!error.hint().empty());
        return error.message();
    }
    return "";
}

}  // namespace

TEST_CASE("pixels are copied row by row") {
    std::vector<std::uint8_t> bytes(2 * 10);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(i);
    const Image image = Image::from_rgb(bytes.data(), 2, 2, 10);
    bytes.assign(bytes.size(), 0);
    CHECK(image.width() == 2);
    CHECK(image.height() == 2);
    CHECK(std::vector<std::uint8_t>(image.data(), image.data() + 12) ==
          std::vector<std::uint8_t>{0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15});
    const Image copy = image;
    CHECK(copy.data() == image.data());
}

TEST_CASE("pixels that are none") {
    const std::uint8_t pixel[3] = {1, 2, 3};
    CHECK(message_of(nullptr, 1, 1, 0) == "the array: its pixels are NULL");
    CHECK(message_of(pixel, 0, 7, 0) == "the array: is empty (0 × 7)");
    CHECK(message_of(pixel, 7, 0, 0) == "the array: is empty (7 × 0)");
    CHECK(message_of(pixel, -1, 1, 0) == "the array: is empty (-1 × 1)");
    CHECK(message_of(pixel, 1, 1, -3) == "stride=-3: must be at least 3, the bytes of a row");
    CHECK(message_of(pixel, 1, 1, 2) == "stride=2: must be at least 3, the bytes of a row");
    CHECK(message_of(pixel, std::int64_t{1} << 62, 1, 0).find("more than any memory") != std::string::npos);
    CHECK(message_of(pixel, std::int64_t{1} << 31, std::int64_t{1} << 31, 0).find("more than") != std::string::npos);
    CHECK(message_of(pixel, 1, 4, std::int64_t{1} << 61).find("more than any memory") != std::string::npos);
    CHECK(message_of(pixel, 1, 1, 3).empty());
}

TEST_CASE("bytes that are none") {
    CHECK_THROWS_AS(Image::from_memory(nullptr, 5), InputError);
    CHECK_THROWS_AS(Image::from_memory(nullptr, 0), InputError);
    CHECK_THROWS_AS(Image::from_file(""), InputError);
}

TEST_CASE("an image that takes too much in the processor") {
    const nlohmann::json settings = {{"crop", {{"height", 28}, {"width", 28}, {"patch", {7, 7}}}},
                                     {"image_processor_type", "LlavaImageProcessor"},
                                     {"do_pad", true},
                                     {"size", 28},
                                     {"crop_size", 28}};
    const auto processor = trtprune::images::processor_from_settings("single", settings, "config.json");
    const std::vector<std::uint8_t> pixels(3 * 3000);
    const Image narrow = Image::from_rgb(pixels.data(), 3000, 1);
    CHECK_NOTHROW(check_prepared_size(*processor, narrow, 9000000));
    CHECK_THROWS_WITH_AS(check_prepared_size(*processor, narrow, 8999999),
                         "the picture: 3000 × 1 is too narrow: prepared for the model it takes 9000000 pixels, above "
                         "the limit of 8999999 (crop it, or raise the limit with max_pixels or TRTPRUNE_MAX_PIXELS)",
                         InputError);
    CHECK_THROWS_AS(processor->plan(0, 5, 1), InputError);
}
