#include "images/settings.hpp"

#include <cmath>
#include <trtprune/error.hpp>

#include "files/shown.hpp"

namespace trtprune::images {

using files::shown;

namespace {

constexpr double float32_max = 3.4e38;
constexpr std::size_t max_pinpoints = 1024;

std::string text(std::int64_t value) {
    return std::to_string(value);
}

Size pinpoint(const std::string& name, const Json& value, std::int64_t tile, std::int64_t max_tiles) {
    if (!value.is_array() || value.size() != 2) {
        throw SettingError(name + ": " + shown(value) + " is no resolution [height, width]");
    }
    const std::int64_t height = edge(name, value[0]);
    const std::int64_t width = edge(name, value[1]);
    const std::string size = name + ": " + text(height) + " × " + text(width);
    const std::string tiles = text(tile) + " × " + text(tile) + " pixels";
    if (height % tile != 0 || width % tile != 0) throw SettingError(size + " is not a multiple of the tile, " + tiles);
    const std::int64_t count = height / tile * (width / tile);
    if (count > max_tiles) {
        throw SettingError(size + " has " + text(count) + " tiles of " + tiles + ", above the limit of " +
                           text(max_tiles));
    }
    return {height, width};
}

}  // namespace

void raise_named(const SettingError& error, const std::string& where) {
    throw EngineDirError(where + ": not a valid image processor: " + error.text(),
                         "correct " + where + ", or fetch it again, and build again");
}

Json with_defaults(const Json& defaults, const Json& settings) {
    Json values = defaults;
    for (auto item = settings.begin(); item != settings.end(); ++item) {
        if (!item.value().is_null()) values[item.key()] = item.value();
    }
    return values;
}

const Json& member(const Json& values, const std::string& name) {
    const auto item = values.find(name);
    if (item == values.end()) throw SettingError("no '" + name + "'");
    return *item;
}

const Json& optional_member(const Json& values, const std::string& name) {
    static const Json none;
    const auto item = values.find(name);
    return item == values.end() ? none : *item;
}

bool is_true(const Json& value) {
    if (value.is_boolean()) return value.get<bool>();
    if (value.is_number()) return value.get<double>() != 0;
    if (value.is_string()) return !value.get_ref<const std::string&>().empty();
    return !value.empty();
}

bool is_int(const Json& value) {
    return value.is_number_integer() || value.is_boolean();
}

bool flag(const Json& values, const std::string& name) {
    const Json& value = member(values, name);
    if (value.is_boolean()) return value.get<bool>();
    if (value == 0 && value.is_number_integer()) return false;
    if (value == 1 && value.is_number_integer()) return true;
    throw SettingError(name + " " + shown(value) + " is neither true nor false");
}

std::int64_t whole_number(const std::string& name, const Json& value, std::int64_t least, std::int64_t most) {
    const bool huge = value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX;
    const std::int64_t found = value.is_number_integer() && !huge ? value.get<std::int64_t>() : 0;
    if (!value.is_number_integer() || huge || found < least || found > most) {
        throw SettingError(name + " " + shown(value) + " is not between " + text(least) + " and " + text(most));
    }
    return found;
}

double number(const std::string& name, const Json& value) {
    if (!value.is_number()) throw SettingError(name + " " + shown(value) + " is not a number");
    const auto found = value.get<double>();
    if (!(std::abs(found) < float32_max)) throw SettingError(name + " is beyond every float32");
    return found;
}

Channels channels(const std::string& name, const Json& value) {
    if (value.is_array() && value.size() != 3) throw SettingError(name + " has not a value for each of 3 channels");
    Channels found{};
    for (std::size_t i = 0; i < 3; ++i) found[i] = number(name, value.is_array() ? value[i] : value);
    return found;
}

int resample_filter(const Json& value) {
    if (!value.is_number_integer() || value < 0 || value > 5) {
        throw SettingError("resample " + shown(value) + " is not a Pillow filter (0 to 5)");
    }
    return value.get<int>();
}

std::int64_t edge(const std::string& name, const Json& value) {
    return whole_number(name, value, 1, size_limit);
}

Size height_and_width(const std::string& name, const Json& value) {
    if (is_int(value)) return {edge(name, value), edge(name, value)};
    if (!value.is_object()) throw SettingError(name + " " + shown(value) + " is no size");
    const std::int64_t height = edge(name, optional_member(value, "height"));
    return {height, edge(name, optional_member(value, "width"))};
}

ResizeTarget resize_target(const Json& values) {
    const Json& size = member(values, "size");
    if (is_int(size)) {
        const std::int64_t length = edge("size", size);
        const bool square =
            !optional_member(values, "default_to_square").is_null() && flag(values, "default_to_square");
        return square ? ResizeTarget{false, length, length} : ResizeTarget{true, length, 0};
    }
    if (!size.is_object()) throw SettingError("size " + shown(size) + " is no size");
    if (is_true(optional_member(size, "longest_edge")) || is_true(optional_member(size, "max_height"))) {
        throw SettingError("size " + shown(size) + " is not supported");
    }
    const Json& shortest = optional_member(size, "shortest_edge");
    if (is_true(shortest)) return {true, edge("size", shortest), 0};
    const Size exact = height_and_width("size", size);
    return {false, exact.first, exact.second};
}

std::vector<Size> pinpoint_list(const std::string& name, const Json& value, std::int64_t tile, std::int64_t max_tiles) {
    if (!value.is_array() || value.empty()) {
        throw SettingError(name + " " + shown(value) + " is no list of resolutions [height, width]");
    }
    if (value.size() > max_pinpoints) {
        throw SettingError(name + " has " + std::to_string(value.size()) + " resolutions, above the limit of " +
                           std::to_string(max_pinpoints));
    }
    std::vector<Size> pinpoints;
    for (const Json& item : value) pinpoints.push_back(pinpoint(name, item, tile, max_tiles));
    return pinpoints;
}

CropShape crop_shape(const Json& settings) {
    const Json& values = member(settings, "crop");
    if (!values.is_object()) throw SettingError("crop is no object");
    CropShape shape;
    shape.height = whole_number("crop.height", member(values, "height"), 1, size_limit);
    shape.width = whole_number("crop.width", member(values, "width"), 1, size_limit);
    const Json& patch = member(values, "patch");
    if (!patch.is_array() || patch.size() != 2) {
        throw SettingError("crop.patch " + shown(patch) + " is no size [height, width]");
    }
    shape.patch = {whole_number("crop.patch", patch[0], 1, shape.height),
                   whole_number("crop.patch", patch[1], 1, shape.width)};
    const auto first = values.find("first_patch");
    shape.first_patch = first == values.end() ? 0 : whole_number("crop.first_patch", *first, -1, 1);
    if (shape.features() < 1) throw SettingError("crop has no patch but the one that is dropped");
    return shape;
}

std::string tuple_repr(const Channels& values) {
    return "(" + files::float_repr(values[0]) + ", " + files::float_repr(values[1]) + ", " +
           files::float_repr(values[2]) + ")";
}

std::string tuple_repr(const Size& size) {
    return "(" + text(size.first) + ", " + text(size.second) + ")";
}

}  // namespace trtprune::images
