// Images for the tests: a JSON object a line, an answer a line.  Bytes are hexadecimal.
//
//   {"op": "processor", "name", "settings", "where"}
//       {} or {"error", "hint", "code"}
//   {"op": "plan", "name", "settings", "height", "width", "images", "keep"}
//       the members of the plan, and "without_choice" for each number of the list "keep"
//   {"op": "prepare", "name", "settings", "height", "width", "images", "pixels"}
//       {"pixel_values", "shape", "arrays", "taken"}
//   {"op": "resample", "height", "width", "pixels", "to": [height, width], "filter"}
//       {"pixels"}
//   {"op": "file", "path", "max_pixels", "strict"} and {"op": "memory", "data", "max_pixels", "strict"}
//       {"height", "width", "pixels"}
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <trtprune/error.hpp>
#include <trtprune/image.hpp>
#include <vector>

#include "images/processor.hpp"
#include "images/resample.hpp"

namespace {

using nlohmann::json;
using namespace trtprune;

std::string hex(const void* data, std::size_t size) {
    static const char* const digits = "0123456789abcdef";
    std::string text(size * 2, '0');
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    for (std::size_t i = 0; i < size; ++i) {
        text[2 * i] = digits[bytes[i] >> 4];
        text[2 * i + 1] = digits[bytes[i] & 15];
    }
    return text;
}

template <class T>
std::string hex(const std::vector<T>& values) {
    return hex(values.data(), values.size() * sizeof(T));
}

std::vector<std::uint8_t> bytes(const std::string& text) {
    const auto value = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
    std::vector<std::uint8_t> result(text.size() / 2);
    for (std::size_t i = 0; i < result.size(); ++i) {
        result[i] = static_cast<std::uint8_t>(value(text[2 * i]) * 16 + value(text[2 * i + 1]));
    }
    return result;
}

std::unique_ptr<images::Processor> processor(const json& request) {
    return images::processor_from_settings(request.at("name"), request.at("settings"),
                                           request.value("where", "config.json"));
}

json planned(const json& request) {
    const images::TokenPlan plan =
        processor(request)->plan(request.at("height"), request.at("width"), request.value("images", 1));
    json answer{{"crops", plan.crops},
                {"taps", plan.taps},
                {"tokens", plan.tokens()},
                {"overview", plan.overview},
                {"spans", plan.span_lengths()},
                {"markers", plan.span_texts()},
                {"grid", hex(plan.grid)},
                {"newline", hex(plan.newline)},
                {"pack_index", hex(plan.pack_index)},
                {"pack_weight", hex(plan.pack_weight)},
                {"boxes", hex(plan.boxes)},
                {"padding", hex(plan.padding)},
                {"candidates", plan.candidates()}};
    const std::string newlines = request.value("newlines", "drop");
    answer["choices"] = plan.choices(newlines);
    for (const std::int64_t keep : request.value("keep", std::vector<std::int64_t>())) {
        const auto kept = plan.without_choice(keep, newlines);
        answer["without_choice"].push_back(kept ? json(*kept) : json());
    }
    return answer;
}

// What stands in a prompt alone, for sweeps over many sizes.
json spans(const json& request) {
    const images::TokenPlan plan = processor(request)->plan(request.at("height"), request.at("width"));
    return {{"crops", plan.crops}, {"spans", plan.span_lengths()}, {"markers", plan.span_texts()}};
}

json prepared(const json& request) {
    const std::vector<std::uint8_t> pixels = bytes(request.at("pixels"));
    const Image image = Image::from_rgb(pixels.data(), request.at("width"), request.at("height"));
    const auto made = processor(request);
    const std::int64_t images = request.value("images", 1);
    const images::Prepared result = made->prepare(image, images);
    json arrays = json::object();
    for (const auto& [name, array] : result.arrays) arrays[name] = {{"shape", array.shape}, {"values", array.values}};
    const json crops{result.crops, 3, result.height, result.width};
    return {{"pixel_values", hex(result.pixel_values)},
            {"shape", made->packed() ? json{result.patches, result.width} : crops},
            {"arrays", arrays},
            {"taken", made->pixels_taken(image.width(), image.height(), images)}};
}

json resampled(const json& request) {
    const std::vector<std::uint8_t> pixels = bytes(request.at("pixels"));
    const std::int64_t width = request.at("width");
    const images::PixelView view{pixels.data(), request.at("height"), width, width * 3};
    const json& to = request.at("to");
    return {{"pixels", hex(images::resample(view, to[0], to[1], request.at("filter")).data)}};
}

json decoded(const json& request) {
    ImageOptions options;
    options.max_pixels = request.value("max_pixels", 0);
    options.strict = request.value("strict", false);
    if (request.at("op") == "file") {
        const Image image = Image::from_file(request.at("path"), options);
        return {{"height", image.height()},
                {"width", image.width()},
                {"pixels", hex(image.data(), static_cast<std::size_t>(image.height() * image.width() * 3))}};
    }
    const std::vector<std::uint8_t> data = bytes(request.at("data"));
    const Image image = Image::from_memory(data.data(), data.size(), options);
    return {{"height", image.height()},
            {"width", image.width()},
            {"pixels", hex(image.data(), static_cast<std::size_t>(image.height() * image.width() * 3))}};
}

json answer(const json& request) {
    const std::string op = request.at("op");
    if (op == "plan") return planned(request);
    if (op == "spans") return spans(request);
    if (op == "prepare") return prepared(request);
    if (op == "resample") return resampled(request);
    if (op == "processor") return {{"name", processor(request)->name()}};
    return decoded(request);
}

}  // namespace

int main() {
    std::ios::sync_with_stdio(false);
    for (std::string line; std::getline(std::cin, line);) {
        json result;
        try {
            result = answer(json::parse(line));
        } catch (const Error& error) {
            result = {{"error", error.message()}, {"hint", error.hint()}, {"code", static_cast<int>(error.code())}};
        }
        std::cout << result.dump(-1, ' ', false, json::error_handler_t::replace) << "\n";
    }
    return 0;
}
