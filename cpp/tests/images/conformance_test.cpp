#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <trtprune/image.hpp>
#include <vector>

#include "files/sha256.hpp"
#include "images/processor.hpp"

// tests/conformance/images.json holds what transformers makes; write_images.py beside it says how.
namespace {

using nlohmann::json;
using trtprune::Image;
using trtprune::images::Prepared;
using trtprune::images::TokenPlan;

std::vector<std::uint8_t> picture(std::int64_t height, std::int64_t width) {
    std::vector<std::uint8_t> pixels;
    for (std::int64_t y = 0; y < height; ++y) {
        for (std::int64_t x = 0; x < width; ++x) {
            for (std::int64_t c = 0; c < 3; ++c) {
                pixels.push_back(static_cast<std::uint8_t>((7 * x + 13 * y + 29 * c + x * y / 5) % 256));
            }
        }
    }
    return pixels;
}

template <class T>
std::string digest(const std::vector<T>& values) {
    trtprune::files::Sha256 sha;
    sha.update(values.data(), values.size() * sizeof(T));
    return sha.hex();
}

std::vector<std::int32_t> first_taps(const TokenPlan& plan) {
    std::vector<std::int32_t> rows;
    for (std::int64_t i = 0; i < plan.tokens(); ++i) {
        rows.push_back(plan.pack_index[static_cast<std::size_t>(i * plan.taps)]);
    }
    return rows;
}

// A visual token of the features that the vectors are made of.
double packed(const TokenPlan& plan, std::int64_t token) {
    std::int64_t newline = 0;
    for (const std::int32_t row : plan.pack_index) newline = std::max<std::int64_t>(newline, row);
    double sum = 0;
    for (std::int64_t tap = 0; tap < plan.taps; ++tap) {
        const auto place = static_cast<std::size_t>(token * plan.taps + tap);
        const std::int64_t row = plan.pack_index[place];
        const bool learned = plan.is_newline(token) && row == newline;
        const double feature = learned ? -1.0 : static_cast<double>(row * 7919 % 10007) / 10007;
        sum += static_cast<double>(plan.pack_weight[place]) * feature;
    }
    return sum;
}

}  // namespace

TEST_CASE("prepared arrays and visual tokens are those of transformers") {
    std::ifstream stream(TRTPRUNE_ROOT "/tests/conformance/images.json");
    const json data = json::parse(stream);
    REQUIRE(data.at("cases").size() > 60);
    for (const json& entry : data.at("cases")) {
        const std::int64_t height = entry.at("height");
        const std::int64_t width = entry.at("width");
        const std::string name = entry.at("processor");
        CAPTURE(name);
        CAPTURE(height);
        CAPTURE(width);
        CAPTURE(entry.at("settings").dump());
        const auto processor = trtprune::images::processor_from_settings(name, entry.at("settings"), "config.json");
        CHECK(processor->name() == name);
        const std::vector<std::uint8_t> pixels = picture(height, width);
        const Prepared prepared =
            processor->prepare(Image::from_rgb(pixels.data(), width, height), entry.at("images").get<std::int64_t>());
        const TokenPlan& plan = *prepared.plan;
        CHECK(prepared.crops == entry.at("crops"));
        CHECK(plan.crops == entry.at("crops"));
        CHECK(plan.tokens() == entry.at("tokens"));
        CHECK(digest(prepared.pixel_values) == entry.at("pixel_values"));
        if (entry.contains("grid")) {
            CHECK(digest(plan.grid) == entry.at("grid"));
            CHECK(digest(first_taps(plan)) == entry.at("pack_index"));
        }
        if (!entry.contains("packed")) continue;
        for (const auto& [token, value] : entry.at("packed").items()) {
            CHECK(packed(plan, std::stoll(token)) == doctest::Approx(value.get<double>()).epsilon(1e-5));
        }
    }
}
