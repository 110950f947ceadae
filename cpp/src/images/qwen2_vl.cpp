#include "images/qwen2_vl.hpp"

#include <algorithm>
#include <cmath>
#include <trtprune/error.hpp>

#include "files/shown.hpp"
#include "images/anyres.hpp"
#include "images/planes.hpp"
#include "images/resample.hpp"

namespace trtprune::images {

namespace {

// The largest ratio of an image's sides.
constexpr std::int64_t most_aspect = 200;
// The largest number of visual tokens of an image that settings may allow.
constexpr std::int64_t most_tokens = std::int64_t{1} << 17;
// transformers' defaults of `patch_size`, `merge_size` and `temporal_patch_size`.
constexpr std::array<std::int64_t, 3> default_patch{14, 2, 2};

// transformers' defaults of the class.
Json defaults() {
    return {
        {"do_resize", true},
        {"size", {{"shortest_edge", 56 * 56}, {"longest_edge", 28 * 28 * 1280}}},
        {"resample", 3},
        {"do_rescale", true},
        {"rescale_factor", 1.0 / 255},
        {"do_normalize", true},
        {"image_mean", {0.48145466, 0.4578275, 0.40821073}},
        {"image_std", {0.26862954, 0.26130258, 0.27577711}},
    };
}

bool equals(const Json& value, std::int64_t number) {
    if (value.is_boolean()) return value.get<bool>() == (number == 1) && number <= 1;
    return value.is_number() && value == number;
}

// Raises SettingError where the file's patches are not the tower's.
void check_patches(const Json& settings, const PackedShape& shape) {
    const std::pair<const char*, std::int64_t> own[] = {
        {"patch_size", shape.patch}, {"merge_size", shape.merge}, {"temporal_patch_size", shape.frames}};
    for (std::size_t i = 0; i < default_patch.size(); ++i) {
        const auto& [name, value] = own[i];
        Json stated = optional_member(settings, name);
        // In an engine directory the shape alone is stored.
        if (stated.is_null() && settings.contains("patch_size")) stated = default_patch[i];
        if (!stated.is_null() && !equals(stated, value)) {
            throw SettingError(std::string(name) + " is " + files::shown(stated) + ", and the vision tower's " +
                               std::to_string(value));
        }
    }
}

// A bound of an image's pixels and its name; `min_pixels` and `max_pixels` go before those of `size`.
std::pair<std::string, std::int64_t> bound(const Json& values, const std::string& own, const std::string& edge,
                                           std::int64_t factor) {
    const Json& size = member(values, "size");
    std::string name = own;
    Json value = optional_member(values, own);
    if (value.is_null()) {
        name = "size." + edge;
        value = optional_member(size, edge);
    }
    if (value.is_null()) throw SettingError("size " + files::shown(size) + " has no " + edge);
    return {name, whole_number(name, value, 1, most_tokens * factor * factor)};
}

std::int64_t whole(double value) {
    return static_cast<std::int64_t>(std::min(value, 9e18));
}

}  // namespace

Size smart_size(Size image, std::int64_t factor, std::int64_t least, std::int64_t most) {
    const auto height = static_cast<double>(image.first), width = static_cast<double>(image.second);
    const auto side = static_cast<double>(factor);
    const auto pixels = static_cast<double>(area(image));
    // To the even number at halves.
    Size tokens{whole(std::nearbyint(height / side)), whole(std::nearbyint(width / side))};
    const std::int64_t scaled = area({area(tokens), factor * factor});
    if (scaled > most) {
        const double scale = std::sqrt(pixels / static_cast<double>(most));
        tokens = {std::max<std::int64_t>(1, whole(std::floor(height / scale / side))),
                  std::max<std::int64_t>(1, whole(std::floor(width / scale / side)))};
    } else if (scaled < least) {
        const double scale = std::sqrt(static_cast<double>(least) / pixels);
        tokens = {whole(std::ceil(height * scale / side)), whole(std::ceil(width * scale / side))};
    }
    return {tokens.first * factor, tokens.second * factor};
}

// -- settings

Qwen2Vl::Qwen2Vl(const Json& settings) {
    Json values = with_defaults(defaults(), settings);
    const Json& layout = optional_member(values, "layout");
    if (!layout.is_null() && layout != "model") {
        throw SettingError("layout " + files::shown(layout) + " is none of model");
    }
    shape_ = PackedShape(values);
    token_ = {shape_.factor(), shape_.factor(), {shape_.factor(), shape_.factor()}, 0};
    check_patches(settings, shape_);
    if (!flag(values, "do_resize")) {
        throw SettingError("do_resize is false: pictures would not be whole visual tokens");
    }
    const Json& size = member(values, "size");
    if (!size.is_object()) {
        throw SettingError("size " + files::shown(size) + " is no object with shortest_edge and longest_edge");
    }
    const auto [low, least] = bound(values, "min_pixels", "shortest_edge", shape_.factor());
    const auto [high, most] = bound(values, "max_pixels", "longest_edge", shape_.factor());
    if (least > most) {
        throw SettingError(low + " " + std::to_string(least) + " is above " + high + " " + std::to_string(most));
    }
    least_ = least;
    most_ = most;
    values["do_resize"] = false;
    values["do_center_crop"] = false;
    steps_ = CropSteps(values);
}

std::unique_ptr<Processor> Qwen2Vl::from_settings(const Json& settings, const std::string& where) {
    return named(where, [&] { return std::unique_ptr<Processor>(new Qwen2Vl(settings)); });
}

// -- sizes

Size Qwen2Vl::size_of(std::int64_t height, std::int64_t width) const {
    check_size(height, width);
    const double longer = static_cast<double>(std::max(height, width));
    if (longer / static_cast<double>(std::min(height, width)) > static_cast<double>(most_aspect)) {
        throw InputError("a picture of " + std::to_string(width) + " × " + std::to_string(height) +
                             " is too narrow: this model takes sides of up to " + std::to_string(most_aspect) + " to 1",
                         "crop it");
    }
    return smart_size({height, width}, shape_.factor(), least_, most_);
}

std::int64_t Qwen2Vl::pixels_taken(std::int64_t width, std::int64_t height, std::int64_t /*images*/) const {
    return std::max(area({height, width}), area(size_of(height, width)));
}

// -- plan and pixels

TokenPlan Qwen2Vl::plan(std::int64_t height, std::int64_t width, std::int64_t /*images*/) const {
    const Size size = size_of(height, width);
    const CropShape shape{size.first, size.second, token_.patch, 0};
    Geometry geometry;
    geometry.scale_x = static_cast<double>(width) / static_cast<double>(size.second);
    geometry.scale_y = static_cast<double>(height) / static_cast<double>(size.first);
    geometry.width = size.second;
    geometry.height = size.first;
    const Size image{height, width};
    const Axes axes = axes_of(shape, geometry, image, image, image, image);
    const Plane plane = plane_of_crops(shape, axes, {0, shape.rows()}, {0, shape.columns()}, {});
    return plan_tokens({plane}, 1, shape.patches(), 0);
}

Prepared Qwen2Vl::prepare(const Image& image, std::int64_t images) const {
    const Size size = size_of(image.height(), image.width());
    Prepared prepared;
    prepared.plan = std::make_shared<const TokenPlan>(plan(image.height(), image.width(), images));
    const Pixels pixels = resample(view_of(image), size.first, size.second, steps_.filter());
    std::vector<float> values(pixels.data.size());
    steps_.values(pixels, values.data());
    prepared.pixel_values = shape_.rows(values, size);
    prepared.patches = size.first / shape_.patch * (size.second / shape_.patch);
    prepared.width = shape_.width();
    prepared.arrays = shape_.arrays(size.first / shape_.factor(), size.second / shape_.factor());
    return prepared;
}

}  // namespace trtprune::images
