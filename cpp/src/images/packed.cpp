#include "images/packed.hpp"

#include <algorithm>

#include "backend/tensor_names.hpp"
#include "files/shown.hpp"

namespace trtprune::images {

namespace {

constexpr std::int64_t most_window = 64;

// Windows lie side by side from the top left; those at the right and lower border have fewer tokens.
void add_windows(std::map<std::string, IndexArray>& arrays, std::int64_t rows, std::int64_t columns,
                 std::int64_t window) {
    const std::int64_t down = (rows + window - 1) / window, across = (columns + window - 1) / window;
    const std::int64_t slots = window * window;
    IndexArray index{{down * across, slots},
                     std::vector<std::int64_t>(static_cast<std::size_t>(down * across * slots), no_token)};
    IndexArray places{{rows * columns}, std::vector<std::int64_t>(static_cast<std::size_t>(rows * columns))};
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t column = 0; column < columns; ++column) {
            const std::int64_t number = row / window * across + column / window;
            const std::int64_t slot = number * slots + row % window * window + column % window;
            const std::int64_t token = row * columns + column;
            index.values[static_cast<std::size_t>(slot)] = token;
            places.values[static_cast<std::size_t>(token)] = slot;
        }
    }
    arrays[names::window_index] = std::move(index);
    arrays[names::window_places] = std::move(places);
}

}  // namespace

PackedShape::PackedShape(const Json& settings) {
    const Json& values = member(settings, "packed");
    if (!values.is_object()) throw SettingError("packed is no object");
    patch = whole_number("packed.patch", member(values, "patch"), 1, 1024);
    merge = whole_number("packed.merge", member(values, "merge"), 1, 16);
    frames = whole_number("packed.frames", member(values, "frames"), 1, 16);
    if (values.contains("window")) window = whole_number("packed.window", member(values, "window"), 0, most_window);
}

std::map<std::string, IndexArray> PackedShape::arrays(std::int64_t rows, std::int64_t columns) const {
    std::map<std::string, IndexArray> found;
    IndexArray positions{{rows * columns, 2}, {}};
    positions.values.reserve(static_cast<std::size_t>(rows * columns * 2));
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t column = 0; column < columns; ++column) {
            positions.values.push_back(row);
            positions.values.push_back(column);
        }
    }
    found[names::token_positions] = std::move(positions);
    if (window > 0) add_windows(found, rows, columns, window);
    return found;
}

std::vector<float> PackedShape::rows(const std::vector<float>& values, Size size) const {
    const auto [height, across] = size;
    std::vector<float> result(static_cast<std::size_t>(height / patch * (across / patch) * width()));
    float* target = result.data();
    // The patches' corners, in the order of the tokens and within each token.
    for (std::int64_t token = 0; token < height / factor() * (across / factor()); ++token) {
        const std::int64_t top = token / (across / factor()) * factor(), left = token % (across / factor()) * factor();
        for (std::int64_t part = 0; part < merge * merge; ++part) {
            const std::int64_t y = top + part / merge * patch, x = left + part % merge * patch;
            for (std::int64_t channel = 0; channel < 3; ++channel) {
                const float* const plane = values.data() + channel * height * across;
                const float* const first = target;
                for (std::int64_t line = 0; line < patch; ++line) {
                    const float* const source = plane + (y + line) * across + x;
                    target = std::copy(source, source + patch, target);
                }
                for (std::int64_t frame = 1; frame < frames; ++frame)
                    target = std::copy(first, first + patch * patch, target);
            }
        }
    }
    return result;
}

}  // namespace trtprune::images
