#include "images/internvl.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>

#include "files/shown.hpp"
#include "files/utf8.hpp"
#include "images/resample.hpp"

namespace trtprune::images {

namespace {

constexpr std::size_t longest_marker = 200;

// transformers' defaults of the processor's class.
Json defaults() {
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
        {"min_patches", 1},
        {"max_patches", 12},
        {"layout", "model"},
    };
}

std::string text(std::int64_t value) {
    return std::to_string(value);
}

std::string pixels(Size size) {
    return text(size.first) + " × " + text(size.second);
}

// The characters of a text.
std::size_t characters(std::string_view value) {
    std::size_t count = 0;
    for (std::uint32_t code = 0; !value.empty(); ++count) {
        value.remove_prefix(std::max<std::size_t>(files::utf8_sequence(value, code), 1));
    }
    return count;
}

// A text beside an image's visual tokens in a prompt.
std::string marker(const std::string& name, const Json& value) {
    const bool good = value.is_string() && !value.get_ref<const std::string&>().empty() &&
                      characters(value.get_ref<const std::string&>()) <= longest_marker;
    if (good) return value.get<std::string>();
    throw SettingError(name + " " + files::shown(value) + " is no text of 1 to " + std::to_string(longest_marker) +
                       " characters");
}

}  // namespace

Size best_grid(Size image, Size tile, std::int64_t least, std::int64_t most) {
    const auto number = [](std::int64_t value) { return static_cast<double>(value); };
    Size best{1, 1};
    double distance = std::numeric_limits<double>::infinity();
    // Fewest tiles first, of equal numbers the narrowest grid.
    for (std::int64_t count = least; count <= most; ++count) {
        for (std::int64_t across = 1; across <= count; ++across) {
            if (count % across != 0) continue;
            const std::int64_t down = count / across;
            const double off = std::abs(number(image.second) / number(image.first) - number(across) / number(down));
            const bool large_enough =
                number(area(image)) > 0.5 * number(tile.first) * number(tile.second) * number(across) * number(down);
            if (off < distance || (off == distance && large_enough)) {
                best = {down, across};
                distance = off;
            }
        }
    }
    return best;
}

InternVl::InternVl(const Json& values) : Tiled(values) {
    if (!flag(values, "do_resize")) {
        throw SettingError("do_resize is false, and images of any size have to become crops of one size");
    }
    const Size size = height_and_width("size", member(values, "size"));
    if (size != edge()) {
        throw SettingError("tiles are " + pixels(size) + " pixels, the vision graph takes " + pixels(edge()));
    }
    least_ = whole_number("min_patches", member(values, "min_patches"), 1, max_tiles);
    most_ = whole_number("max_patches", member(values, "max_patches"), 1, max_tiles);
    if (least_ > most_) {
        throw SettingError("min_patches " + text(least_) + " is above max_patches " + text(most_));
    }
    if ((most_ + 1) * shape().patches() > max_tokens) {
        throw SettingError("max_patches leads to " + text(most_ + 1) + " crops of " + text(shape().patches()) +
                           " visual tokens, above the limit of " + text(max_tokens) + " in all");
    }
    const Json& markers = member(values, "markers");
    if (!markers.is_array() || markers.size() != 2) {
        throw SettingError("markers " + files::shown(markers) + " are no two texts");
    }
    Json own = values;
    own["do_center_crop"] = false;
    set_steps(CropSteps(own));
    markers_ = {marker("markers", markers[0]), marker("markers", markers[1])};
}

std::unique_ptr<Processor> InternVl::from_settings(const Json& settings, const std::string& where) {
    return named(where, [&] { return std::unique_ptr<Processor>(new InternVl(with_defaults(defaults(), settings))); });
}

void InternVl::mark(Size /*tiles*/, TokenPlan& plan) const {
    plan.spans = {plan.tokens()};
    plan.markers = {markers_[0], markers_[1]};
}

Pixels InternVl::stretched(const PixelView& image, Size plane) const {
    return resample(image, plane.first, plane.second, steps().filter());
}

Pixels InternVl::whole(const PixelView& image, const Pixels& /*plane*/) const {
    return resample(image, edge().first, edge().second, steps().filter());
}

}  // namespace trtprune::images
