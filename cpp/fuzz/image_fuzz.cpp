// Image files, and settings of an image processor.
//
// The first byte says which: even, the rest is a file; odd, the rest is JSON, whose processor prepares a small image.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <trtprune/error.hpp>
#include <trtprune/image.hpp>
#include <vector>

#include "images/processor.hpp"

namespace {

constexpr std::int64_t max_pixels = std::int64_t{1} << 16;

void read_file(const std::uint8_t* data, std::size_t size, bool strict) {
    trtprune::ImageOptions options;
    options.max_pixels = max_pixels;
    options.strict = strict;
    const trtprune::Image image = trtprune::Image::from_memory(data, size, options);
    if (image.width() < 1 || image.height() < 1 || image.width() * image.height() > max_pixels) std::abort();
    // Each byte is read, so that one that was never written is found.
    std::uint32_t sum = 0;
    for (std::int64_t i = 0; i < image.width() * image.height() * 3; ++i) sum += image.data()[i];
    if (sum == 0xFFFFFFFFU) std::abort();
}

// Every index of a plan is one of the image's features, or a learned row behind them.
void check(const trtprune::images::TokenPlan& plan, const trtprune::images::CropShape& shape) {
    for (const std::int32_t row : plan.pack_index) {
        if (row < 0 || row > plan.crops * shape.features()) std::abort();
    }
    if (plan.grid.size() != static_cast<std::size_t>(plan.tokens() * 3)) std::abort();
}

// A packed image has the numbers that its sizes say, and each window's slot is a token or none.
void check(const trtprune::images::Prepared& prepared) {
    if (static_cast<std::int64_t>(prepared.pixel_values.size()) != prepared.patches * prepared.width) std::abort();
    for (const auto& [name, array] : prepared.arrays) {
        std::int64_t count = 1;
        for (const std::int64_t side : array.shape) count *= side;
        if (count != static_cast<std::int64_t>(array.values.size())) std::abort();
    }
}

void read_settings(const std::string& text, std::int64_t width, std::int64_t height) {
    const nlohmann::json settings = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!settings.is_object()) return;
    const std::vector<std::uint8_t> pixels(static_cast<std::size_t>(width * height * 3), 7);
    const trtprune::Image image = trtprune::Image::from_rgb(pixels.data(), width, height);
    for (const char* name : {"single", "llava_next", "llava_onevision", "qwen2_vl"}) {
        try {
            const auto processor = trtprune::images::processor_from_settings(name, settings, "config.json");
            // More only takes time.
            if (processor->shape().features() > (1 << 16)) continue;
            for (const std::int64_t images : {1, 2}) {
                const trtprune::images::TokenPlan plan = processor->plan(height, width, images);
                if (!processor->packed()) check(plan, processor->shape());
                if (plan.crops * processor->pixels_taken(width, height, images) > (1 << 20)) continue;
                if (processor->shape().height * processor->shape().width > (1 << 18)) continue;
                const trtprune::images::Prepared prepared = processor->prepare(image, images);
                if (!processor->packed()) check(*prepared.plan, processor->shape());
                if (processor->packed()) check(prepared);
            }
        } catch (const trtprune::Error&) {
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 3) return 0;
    try {
        if (data[0] % 2 == 0) {
            read_file(data + 1, size - 1, data[0] % 4 == 2);
        } else {
            read_settings(std::string(data + 3, data + size), 1 + data[1] % 90, 1 + data[2] % 90);
        }
    } catch (const trtprune::Error&) {
    }
    return 0;
}
