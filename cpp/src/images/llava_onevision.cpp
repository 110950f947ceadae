#include "images/llava_onevision.hpp"

#include <algorithm>
#include <cmath>
#include <trtprune/error.hpp>

#include "files/shown.hpp"

namespace trtprune::images {

namespace {

constexpr double tolerance = 1.1;

// transformers' defaults of the processor's class.
Json defaults() {
    Json pinpoints = Json::array();
    for (int height = 1; height <= 6; ++height) {
        for (int width = 1; width <= 6; ++width) pinpoints.push_back({384 * height, 384 * width});
    }
    return {
        {"do_resize", true},
        {"size", {{"height", 384}, {"width", 384}}},
        {"resample", 3},
        {"do_center_crop", false},
        {"do_rescale", true},
        {"rescale_factor", 1.0 / 255},
        {"do_normalize", true},
        {"image_mean", {0.48145466, 0.4578275, 0.40821073}},
        {"image_std", {0.26862954, 0.26130258, 0.27577711}},
        {"do_pad", true},
        {"image_grid_pinpoints", pinpoints},
        {"vision_aspect_ratio", "anyres_max_9"},
        {"layout", "model"},
    };
}

// The number N of `anyres_max_N`, 1 to 9999; 0 for anything else.
std::int64_t most_crops(const Json& ratio) {
    static const std::string prefix = "anyres_max_";
    if (!ratio.is_string()) return 0;
    const auto& text = ratio.get_ref<const std::string&>();
    if (text.compare(0, prefix.size(), prefix) != 0) return 0;
    const std::string digits = text.substr(prefix.size());
    const bool number = !digits.empty() && digits.size() <= 4 && digits[0] != '0' &&
                        std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
    return number ? std::stoll(digits) : 0;
}

// A whole number // a float, as NumPy has it.
std::int64_t floor_divided(std::int64_t number, double divisor) {
    const auto a = static_cast<double>(number);
    const double quotient = (a - std::fmod(a, divisor)) / divisor;
    const double whole = std::floor(quotient);
    return static_cast<std::int64_t>(quotient - whole > 0.5 ? whole + 1 : whole);
}

std::string text(std::int64_t value) {
    return std::to_string(value);
}

}  // namespace

LlavaOnevision::LlavaOnevision(const Json& values, const Own& own) : AnyRes(values, {"model"}), own_(own) {}

std::unique_ptr<Processor> LlavaOnevision::from_settings(const Json& settings, const std::string& where) {
    return named(where, [&] {
        const Json values = with_defaults(defaults(), settings);
        const Own own = own_settings(values);
        return std::unique_ptr<Processor>(new LlavaOnevision(values, own));
    });
}

LlavaOnevision::Own LlavaOnevision::own_settings(const Json& values) {
    Own own;
    const Json& ratio = member(values, "vision_aspect_ratio");
    own.most = most_crops(ratio);
    if (own.most == 0) {
        throw SettingError("vision_aspect_ratio " + files::shown(ratio) +
                           " is not supported, anyres_max_9 and the like are");
    }
    own.background = channels("image_mean", member(values, "image_mean"));
    for (const double value : own.background) {
        if (value >= 0 && value <= 1) continue;
        throw SettingError("image_mean " + tuple_repr(own.background) + " is no colour to pad with: values are 0 to 1");
    }
    return own;
}

Size LlavaOnevision::shrunk(Size patches) const {
    const auto most = static_cast<double>(own_.most * shape().rows() * shape().rows());
    double ratio = std::sqrt(static_cast<double>(area(patches)) / most);
    if (!(ratio > tolerance)) ratio = 1.0;
    return {floor_divided(patches.first, ratio), floor_divided(patches.second, ratio)};
}

std::int64_t LlavaOnevision::pixels_taken(std::int64_t width, std::int64_t height, std::int64_t images) const {
    if (images == 1) return AnyRes::pixels_taken(width, height, images);
    check_size(height, width);
    const std::int64_t side = std::max(width, height);
    return std::max(
        {area({side, side}), area(steps().size_after_resize({side, side})), shape().height * shape().height});
}

TokenPlan LlavaOnevision::plan_of(Size image, std::int64_t images) const {
    if (images == 1) return AnyRes::plan_of(image, images);
    const std::int64_t side = std::max(image.first, image.second);
    if (steps().size_after({side, side}) != Size{shape().height, shape().width}) {
        throw InputError(
            "one of several images is not brought to " + text(shape().height) + " × " + text(shape().width) + " pixels",
            "the image processor neither resizes nor crops: ask about one image at a time");
    }
    return plan_tokens({crop_plane(image, image, {side, side}, taps(), Newline::plane)}, 1, shape().patches(),
                       overview_crop);
}

Plane LlavaOnevision::tile_plane(Size image, const Axes& axes, Size tiles) const {
    const auto [rows, columns] = unpadded(image, {tiles.first * shape().rows(), tiles.second * shape().columns()});
    const Size left = shrunk({rows.size(), columns.size()});
    const Tiles read{overview_crop + 1, tiles.second, taps(), Newline::line};
    if (left == Size{rows.size(), columns.size()}) return plane_of_crops(shape(), axes, rows, columns, read);
    if (left.first == 0 || left.second == 0) {
        throw InputError("an image of " + text(image.second) + " × " + text(image.first) +
                             " is too narrow: nothing is left of its tiles",
                         "crop it");
    }
    return shrunk_plane(shape(), axes, rows, columns, left, read);
}

void LlavaOnevision::cut(const PixelView& image, std::int64_t images,
                         const std::function<void(const PixelView&)>& use) const {
    if (images == 1) {
        AnyRes::cut(image, images, use);
        return;
    }
    std::array<std::uint8_t, 3> colour{};
    for (std::size_t i = 0; i < 3; ++i) colour[i] = static_cast<std::uint8_t>(own_.background[i] * 255);
    use(padded_square(image, colour).view());
}

}  // namespace trtprune::images
