#include "images/anyres.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <trtprune/error.hpp>

#include "files/shown.hpp"
#include "images/resample.hpp"

namespace trtprune::images {

namespace {

constexpr std::int64_t max_tiles = 256;
constexpr std::int64_t max_tokens = std::int64_t{1} << 17;

double ratio(std::int64_t a, std::int64_t b) {
    return static_cast<double>(a) / static_cast<double>(b);
}

std::int64_t truncated(double value) {
    return static_cast<std::int64_t>(value);
}

std::string text(std::int64_t value) {
    return std::to_string(value);
}

// `int(round(value, 7))` of Python: the whole part, or the next number if no more than half of the seventh digit lacks.
std::int64_t rounded_whole(double value) {
    const std::int64_t whole = truncated(value);
    return static_cast<double>(whole + 1) - value <= 0.5e-7 ? whole + 1 : whole;
}

std::int64_t floor_half(std::int64_t value) {
    return value >= 0 ? value / 2 : -((1 - value) / 2);
}

std::string joined(const std::vector<std::string>& names) {
    std::string line;
    for (const std::string& name : names) line += (line.empty() ? "" : ", ") + name;
    return line;
}

}  // namespace

Size best_resolution(Size image, const std::vector<Size>& resolutions) {
    Size best = resolutions.front();
    std::int64_t most = -1;
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    for (const Size& resolution : resolutions) {
        const double scale = std::min(ratio(resolution.second, image.second), ratio(resolution.first, image.first));
        const std::int64_t width = truncated(static_cast<double>(image.second) * scale);
        const std::int64_t height = truncated(static_cast<double>(image.first) * scale);
        const std::int64_t effective = std::min(width * height, area(image));
        const std::int64_t wasted = area(resolution) - effective;
        if (effective > most || (effective == most && wasted < least)) {
            best = resolution;
            most = effective;
            least = wasted;
        }
    }
    return best;
}

Size size_within(Size image, Size resolution) {
    const double scale_x = ratio(resolution.second, image.second);
    const double scale_y = ratio(resolution.first, image.first);
    const auto scaled = [](std::int64_t size, double scale, std::int64_t most) {
        return std::min(static_cast<std::int64_t>(std::ceil(static_cast<double>(size) * scale)), most);
    };
    if (scale_x < scale_y) return {scaled(image.first, scale_x, resolution.first), resolution.second};
    return {resolution.first, scaled(image.second, scale_y, resolution.second)};
}

std::array<Range, 2> unpadded(Size image, Size plane) {
    const auto [height, width] = image;
    const auto [rows, columns] = plane;
    if (ratio(width, height) > ratio(columns, rows)) {
        const double used = static_cast<double>(height) * ratio(columns, width);
        const std::int64_t padding = floor_half(rows - rounded_whole(used));
        return {Range{padding, rows - padding}, Range{0, columns}};
    }
    const double used = static_cast<double>(width) * ratio(rows, height);
    const std::int64_t padding = floor_half(columns - rounded_whole(used));
    return {Range{0, rows}, Range{padding, columns - padding}};
}

void check_size(std::int64_t height, std::int64_t width) {
    if (height >= 1 && width >= 1) return;
    throw InputError("an image of " + text(width) + " × " + text(height) + " is empty",
                     "a picture has at least one pixel");
}

PixelView view_of(const Image& image) {
    return {image.data(), image.height(), image.width(), image.width() * 3};
}

// -- settings

AnyRes::AnyRes(const Json& values, const std::vector<std::string>& layouts) : shape_(crop_shape(values)) {
    if (shape_.height != shape_.width || shape_.rows() != shape_.columns()) {
        throw SettingError("crops of " + text(shape_.height) + " × " + text(shape_.width) + " pixels are not square");
    }
    if (shape_.first_patch != 0) {
        throw SettingError("crops of this processor have a feature for each patch, and none beside");
    }
    flag(values, "do_pad");  // puts further crops behind those of smaller images in a batch, which nobody reads
    const Json& chosen = member(values, "layout");
    if (!chosen.is_string() || std::find(layouts.begin(), layouts.end(), chosen.get<std::string>()) == layouts.end()) {
        throw SettingError("layout " + files::shown(chosen) + " is none of " + joined(layouts));
    }
    layout_ = chosen.get<std::string>();
    check_sizes(values);
}

void AnyRes::check_sizes(const Json& values) {
    const ResizeTarget target = resize_target(values);
    overview_ = {target.first, target.shortest ? target.first : target.second};
    const Json& crop_size = optional_member(values, "crop_size");
    const std::int64_t tile = is_true(crop_size) ? height_and_width("crop_size", crop_size).first : target.first;
    const std::int64_t side = shape_.height;
    const auto pixels = [](Size size) { return text(size.first) + " × " + text(size.second); };
    const std::string expected = "the vision graph takes " + pixels({side, side});
    if (tile != side) throw SettingError("tiles are " + pixels({tile, tile}) + " pixels, " + expected);
    steps_ = CropSteps(values);
    for (const auto& [name, size] : {std::pair<const char*, Size>{"overview", overview_}, {"tile", {tile, tile}}}) {
        const Size after = steps_.size_after(size);
        if (after == Size{side, side}) continue;
        throw SettingError("the " + std::string(name) + " of " + pixels(size) + " becomes " + pixels(after) +
                           " pixels, " + expected);
    }
    const Json& listed = member(values, "image_grid_pinpoints");
    pinpoints_ = pinpoint_list("image_grid_pinpoints", listed, tile, max_tiles);
    const Json& model = optional_member(values, "model_pinpoints");
    if (!model.is_null() &&
        pinpoint_list("image_grid_pinpoints of config.json", model, tile, max_tiles) != pinpoints_) {
        throw SettingError("image_grid_pinpoints are not those of config.json");
    }
    std::int64_t most = 0;
    for (const Size& pinpoint : pinpoints_) most = std::max(most, area(pinpoint) / (side * side) + 1);
    if (most * shape_.patches() > max_tokens) {
        throw SettingError("image_grid_pinpoints lead to " + text(most) + " crops of " + text(shape_.patches()) +
                           " patches, above the limit of " + text(max_tokens) + " in all");
    }
}

// -- plan

std::int64_t AnyRes::pixels_taken(std::int64_t width, std::int64_t height, std::int64_t /*images*/) const {
    check_size(height, width);
    const Size best = best_resolution({height, width}, pinpoints_);
    const std::int64_t side = shape_.height;
    return std::max({area({height, width}), (1 + area(tiles_of(best))) * side * side, area(best), area(overview_),
                     area(steps_.size_after_resize(overview_)), area(steps_.size_after_resize({side, side}))});
}

TokenPlan AnyRes::plan(std::int64_t height, std::int64_t width, std::int64_t images) const {
    check_size(height, width);
    return plan_of({height, width}, images);
}

TokenPlan AnyRes::plan_of(Size image, std::int64_t /*images*/) const {
    const Size best = best_resolution(image, pinpoints_);
    const Size tiles = tiles_of(best);
    const Size crop{shape_.height, shape_.height};
    const Axes axes = axes_of(shape_, steps_.geometry(crop), image, size_within(image, best), best, crop);
    const std::vector<Plane> planes{crop_plane(image, overview_, overview_, taps(), Newline::none),
                                    tile_plane(image, axes, tiles)};
    return plan_tokens(planes, 1 + area(tiles), shape_.patches(), overview_crop);
}

Plane AnyRes::crop_plane(Size image, Size resized, Size plane, std::int64_t taps, Newline newline) const {
    const Axes axes = axes_of(shape_, steps_.geometry(plane), image, resized, plane, plane);
    return plane_of_crops(shape_, axes, {0, shape_.rows()}, {0, shape_.columns()}, {0, 1, taps, newline});
}

// -- pixels

Prepared AnyRes::prepare(const Image& image, std::int64_t images) const {
    const std::int64_t width = image.width();
    const std::int64_t height = image.height();
    if (pixels_taken(width, height, images) > size_limit * size_limit) {
        throw InputError("a picture of " + text(width) + " × " + text(height) + " is too large or too narrow",
                         "crop it");
    }
    Prepared prepared;
    prepared.plan = std::make_shared<const TokenPlan>(plan(height, width, images));
    prepared.crops = prepared.plan->crops;
    prepared.height = shape_.height;
    prepared.width = shape_.width;
    const auto size = static_cast<std::size_t>(3 * shape_.height * shape_.width);
    prepared.pixel_values.resize(static_cast<std::size_t>(prepared.crops) * size);
    std::size_t place = 0;
    cut(view_of(image), images, [&](const PixelView& crop) {
        steps_.values(steps_.pixels(crop), prepared.pixel_values.data() + place);
        place += size;
    });
    return prepared;
}

void AnyRes::cut(const PixelView& image, std::int64_t /*images*/,
                 const std::function<void(const PixelView&)>& use) const {
    use(resample(image, overview_.first, overview_.second, steps_.filter()).view());
    const Size size{image.height, image.width};
    const Size best = best_resolution(size, pinpoints_);
    const Size within = size_within(size, best);
    const Pixels inner = resample(image, within.first, within.second, steps_.filter());
    const std::int64_t top = (best.first - inner.height) / 2;
    const std::int64_t left = (best.second - inner.width) / 2;
    Pixels plane(best.first, best.second);
    for (std::int64_t y = 0; y < inner.height; ++y) {
        std::memcpy(plane.row(top + y) + left * 3, inner.row(y), static_cast<std::size_t>(inner.width * 3));
    }
    const std::int64_t side = shape_.height;
    for (std::int64_t row = 0; row < best.first; row += side) {
        for (std::int64_t column = 0; column < best.second; column += side) {
            use({plane.row(row) + column * 3, side, side, best.second * 3});
        }
    }
}

}  // namespace trtprune::images
