#include "images/smolvlm.hpp"

#include <algorithm>
#include <cmath>

#include "files/shown.hpp"
#include "images/resample.hpp"

namespace trtprune::images {

namespace {

constexpr std::int64_t max_side = 4096;
constexpr const char* around = "<fake_token_around_image>";
constexpr const char* global = "<global-img>";

// transformers' defaults of the processor's class.
Json defaults() {
    return {
        {"do_resize", true},
        {"size", {{"longest_edge", 4 * 364}}},
        {"max_image_size", {{"longest_edge", 364}}},
        {"do_image_splitting", true},
        {"resample", 1},
        {"do_rescale", true},
        {"rescale_factor", 1.0 / 255},
        {"do_normalize", true},
        {"image_mean", {0.5, 0.5, 0.5}},
        {"image_std", {0.5, 0.5, 0.5}},
        {"do_pad", true},
        {"layout", "model"},
    };
}

std::string text(std::int64_t value) {
    return std::to_string(value);
}

double number(std::int64_t value) {
    return static_cast<double>(value);
}

// Whole tiles that cover a side, in pixels.
std::int64_t covered(std::int64_t side, std::int64_t tile) {
    return static_cast<std::int64_t>(std::ceil(number(side) / number(tile))) * tile;
}

// A size, or a smaller one of the same shape within the largest side.
Size within(Size size) {
    auto [height, width] = size;
    const double aspect = number(width) / number(height);
    if (width >= height && width > max_side) {
        width = max_side;
        height = static_cast<std::int64_t>(number(max_side) / aspect);
    } else if (height > width && height > max_side) {
        height = max_side;
        width = static_cast<std::int64_t>(number(max_side) * aspect);
    }
    return {std::max<std::int64_t>(height, 1), std::max<std::int64_t>(width, 1)};
}

// A setting of the form {"longest_edge": pixels}.
std::int64_t longest_edge(const Json& values, const std::string& name) {
    const Json& value = member(values, name);
    if (!value.is_object() || optional_member(value, "longest_edge").is_null()) {
        throw SettingError(name + " " + files::shown(value) + " is not of the form {\"longest_edge\": PIXELS}");
    }
    return edge(name, value["longest_edge"]);
}

}  // namespace

Size scaled_size(Size image, std::int64_t longest) {
    auto [height, width] = image;
    const double aspect = number(width) / number(height);
    if (width >= height) {
        width = longest;
        height = static_cast<std::int64_t>(number(longest) / aspect);
        height += height % 2;
    } else {
        height = longest;
        width = static_cast<std::int64_t>(number(longest) * aspect);
        width += width % 2;
    }
    return within({std::max<std::int64_t>(height, 1), std::max<std::int64_t>(width, 1)});
}

Size plane_size(Size image, std::int64_t tile) {
    auto [height, width] = image;
    const double aspect = number(width) / number(height);
    if (width >= height) {
        width = covered(width, tile);
        return {covered(static_cast<std::int64_t>(number(width) / aspect), tile), width};
    }
    height = covered(height, tile);
    return {height, covered(static_cast<std::int64_t>(number(height) * aspect), tile)};
}

std::vector<std::string> tile_markers(Size tiles) {
    const std::string fake = around;
    if (area(tiles) == 1) return {fake + global, fake};
    std::vector<std::string> markers;
    for (std::int64_t row = 0; row < tiles.first; ++row) {
        for (std::int64_t column = 0; column < tiles.second; ++column) {
            // A line ends with a newline, the tiles with another one.
            const std::string end = row > 0 && column == 0 ? "\n" : "";
            markers.push_back(end + fake + "<row_" + text(row + 1) + "_col_" + text(column + 1) + ">");
        }
    }
    markers.push_back("\n\n" + fake + global);
    markers.push_back(fake);
    return markers;
}

SmolVlm::SmolVlm(const Json& values) : Tiled(values) {
    flag(values, "do_pad");  // puts further crops behind those of smaller images in a batch, which nobody reads
    if (!flag(values, "do_resize")) {
        throw SettingError("do_resize is false, and images of any size have to become a bounded number of crops");
    }
    const std::int64_t tile = longest_edge(values, "max_image_size");
    const std::string square = text(tile) + " × " + text(tile);
    if (tile != shape().height) {
        throw SettingError("max_image_size: tiles are " + square + " pixels, the vision graph takes " +
                           text(shape().height) + " × " + text(shape().width));
    }
    Json own = values;
    own["do_resize"] = false;
    own["do_center_crop"] = false;
    set_steps(CropSteps(own));
    longest_ = longest_edge(values, "size");
    splitting_ = flag(values, "do_image_splitting");
    const auto side = static_cast<std::int64_t>(std::ceil(number(std::min(longest_ + 1, max_side)) / number(tile)));
    if (splitting_ && side * side > max_tiles) {
        throw SettingError("size leads to " + text(side * side) + " tiles of " + square +
                           " pixels, above the limit of " + text(max_tiles));
    }
    const std::int64_t most = most_crops();
    if (most * shape().patches() > max_tokens) {
        throw SettingError("size leads to " + text(most) + " crops of " + text(shape().patches()) +
                           " visual tokens, above the limit of " + text(max_tokens) + " in all");
    }
}

std::unique_ptr<Processor> SmolVlm::from_settings(const Json& settings, const std::string& where) {
    return named(where, [&] { return std::unique_ptr<Processor>(new SmolVlm(with_defaults(defaults(), settings))); });
}

// The largest number of an image's crops, over all sizes that `scaled_size` gives: one side is the longest, the other
// any even number or 1.
std::int64_t SmolVlm::most_crops() const {
    if (!splitting_) return 1;
    std::int64_t most = 1;
    for (std::int64_t other = 0; other <= longest_ + longest_ % 2; other += 2) {
        const std::int64_t side = std::max<std::int64_t>(other, 1);
        most = std::max({most, crops_of(tiles_of_scaled(within({side, longest_}))),
                         crops_of(tiles_of_scaled(within({longest_, side})))});
    }
    return most;
}

Size SmolVlm::tiles_of_scaled(Size scaled) const {
    const Size plane = plane_size(scaled, shape().height);
    return {plane.first / shape().height, plane.second / shape().height};
}

Size SmolVlm::tiles_of(Size image) const {
    return splitting_ ? tiles_of_scaled(scaled_size(image, longest_)) : Size{1, 1};
}

void SmolVlm::mark(Size tiles, TokenPlan& plan) const {
    plan.spans.assign(static_cast<std::size_t>(plan.crops), shape().patches());
    plan.markers = tile_markers(tiles);
}

Pixels SmolVlm::stretched(const PixelView& image, Size plane) const {
    const Size scaled = scaled_size({image.height, image.width}, longest_);
    const Pixels enlarged = resample(image, scaled.first, scaled.second, steps().filter());
    return resample(enlarged.view(), plane.first, plane.second, steps().filter());
}

Pixels SmolVlm::whole(const PixelView& /*image*/, const Pixels& plane) const {
    return resample(plane.view(), edge().first, edge().second, steps().filter());
}

}  // namespace trtprune::images
