#include "images/planes.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace trtprune::images {

namespace {

std::int64_t floor_half(std::int64_t value) {
    return value >= 0 ? value / 2 : -((1 - value) / 2);
}

// Patch of the image, crop after crop, and its crop.
struct Patch {
    std::int32_t index;
    std::int32_t crop;
};

Patch patch_at(const CropShape& shape, std::int64_t row, std::int64_t column, const Tiles& tiles) {
    const std::int64_t crop = tiles.first + row / shape.rows() * tiles.across + column / shape.columns();
    const std::int64_t place = row % shape.rows() * shape.columns() + column % shape.columns();
    return {static_cast<std::int32_t>(crop * shape.patches() + place), static_cast<std::int32_t>(crop)};
}

std::vector<std::array<double, 2>> extents(const Axis& axis, Range patches) {
    std::vector<std::array<double, 2>> result;
    for (std::int64_t i = patches.begin; i < patches.end; ++i) {
        result.push_back({axis.place(static_cast<double>(i), false), axis.place(static_cast<double>(i + 1), true)});
    }
    return result;
}

std::vector<std::array<double, 2>> shrunk_extents(const Axis& axis, Range patches, std::int64_t size) {
    const double step = static_cast<double>(patches.size()) / static_cast<double>(size);
    const auto border = [&](std::int64_t i) {
        return static_cast<double>(patches.begin) + static_cast<double>(i) * step;
    };
    std::vector<std::array<double, 2>> result;
    for (std::int64_t i = 0; i < size; ++i) {
        result.push_back({axis.place(border(i), false), axis.place(border(i + 1), true)});
    }
    return result;
}

// A place of a linear interpolation: the first place, the one behind it, and the second one's weight.
struct Tap {
    std::int64_t first;
    std::int64_t second;
    float weight;
};

// As `torch.nn.functional.interpolate` (mode bilinear, `align_corners=False`) from `size` places to `shrunk` places.
std::vector<Tap> bilinear_taps(std::int64_t size, std::int64_t shrunk) {
    const float ratio = static_cast<float>(size) / static_cast<float>(shrunk);
    std::vector<Tap> taps;
    for (std::int64_t i = 0; i < shrunk; ++i) {
        // torch computes ratio · (place + ½) − ½ in single precision, rounded once (a fused multiply-add); a double
        // holds the product exactly.  With two roundings weights would differ by 1e-5.
        const double exact = static_cast<double>(ratio) * (static_cast<double>(i) + 0.5) - 0.5;
        const float source = std::max(static_cast<float>(exact), 0.0F);
        const auto first = static_cast<std::int64_t>(source);
        taps.push_back({first, std::min(first + 1, size - 1), source - static_cast<float>(first)});
    }
    return taps;
}

std::vector<std::int32_t> places(std::int64_t begin, std::int64_t end) {
    std::vector<std::int32_t> result;
    for (std::int64_t i = begin; i < end; ++i) result.push_back(static_cast<std::int32_t>(i));
    return result;
}

// Writes a plane's tokens into a plan, from token `start` on.
void write_plane(const Plane& plane, std::int64_t start, TokenPlan& plan) {
    const auto taps = static_cast<std::size_t>(plane.taps);
    const std::int64_t end_of_plane = start + plane.height() * plane.line();
    for (std::int64_t h = 0; h < plane.height(); ++h) {
        const std::int64_t line = start + h * plane.line();
        for (std::int64_t w = 0; w < plane.line(); ++w) {
            const auto token = static_cast<std::size_t>(line + w);
            if (plane.newline == Newline::line) plan.newline[token] = static_cast<std::int32_t>(line + plane.width());
            if (plane.newline == Newline::plane) plan.newline[token] = static_cast<std::int32_t>(end_of_plane);
            if (w == plane.width()) continue;
            const auto row = static_cast<std::size_t>(h);
            const auto column = static_cast<std::size_t>(w);
            const auto source = static_cast<std::size_t>(h * plane.width() + w);
            plan.grid[token * 3] = plane.crop[source];
            plan.grid[token * 3 + 1] = plane.rows[row];
            plan.grid[token * 3 + 2] = plane.columns[column];
            for (std::size_t tap = 0; tap < taps; ++tap) {
                plan.pack_index[token * taps + tap] = plane.index[source * taps + tap];
                plan.pack_weight[token * taps + tap] = plane.weight[source * taps + tap];
            }
            for (std::size_t side = 0; side < 2; ++side) {
                plan.boxes[token * 4 + side * 2] = static_cast<float>(plane.horizontal[column][side]);
                plan.boxes[token * 4 + side * 2 + 1] = static_cast<float>(plane.vertical[row][side]);
            }
        }
    }
    if (plane.newline == Newline::plane) {
        plan.newline[static_cast<std::size_t>(end_of_plane)] = static_cast<std::int32_t>(end_of_plane);
    }
}

}  // namespace

double Axis::place(double border, bool end) const {
    const auto in_crop = static_cast<double>(patches);
    const double number = end ? std::ceil(border / in_crop) - 1 : std::floor(border / in_crop);
    const double pixels = (border - number * in_crop) * static_cast<double>(patch);
    // A crop that is smaller than the array is surrounded by zeros there, not by its neighbours.
    const double within = std::min(std::max(start + pixels * scale, 0.0), static_cast<double>(crop));
    const double on_plane = number * static_cast<double>(crop) + within;
    const double ratio = static_cast<double>(size) / static_cast<double>(resized);
    return std::min(std::max((on_plane - static_cast<double>(before)) * ratio, 0.0), static_cast<double>(size));
}

Axes axes_of(const CropShape& shape, const Geometry& geometry, Size image, Size resized, Size plane, Size crop) {
    const Axis vertical{image.first,    resized.first, floor_half(plane.first - resized.first),
                        crop.first,     geometry.top,  geometry.scale_y,
                        shape.patch[0], shape.rows()};
    const Axis horizontal{image.second,   resized.second, floor_half(plane.second - resized.second),
                          crop.second,    geometry.left,  geometry.scale_x,
                          shape.patch[1], shape.columns()};
    return {vertical, horizontal};
}

Plane plane_of_crops(const CropShape& shape, const Axes& axes, Range rows, Range columns, const Tiles& tiles) {
    Plane plane;
    plane.taps = tiles.taps;
    plane.newline = tiles.newline;
    plane.rows = places(rows.begin, rows.end);
    plane.columns = places(columns.begin, columns.end);
    plane.vertical = extents(axes[0], rows);
    plane.horizontal = extents(axes[1], columns);
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        for (std::int64_t column = columns.begin; column < columns.end; ++column) {
            const Patch patch = patch_at(shape, row, column, tiles);
            plane.crop.push_back(patch.crop);
            // Taps without weight repeat the first one, so that an infinity in another patch has no effect.
            for (std::int64_t tap = 0; tap < tiles.taps; ++tap) {
                plane.index.push_back(patch.index);
                plane.weight.push_back(tap == 0 ? 1.0F : 0.0F);
            }
        }
    }
    return plane;
}

Plane shrunk_plane(const CropShape& shape, const Axes& axes, Range rows, Range columns, Size size, const Tiles& tiles) {
    Plane plane;
    plane.taps = 4;
    plane.newline = tiles.newline;
    plane.rows = places(0, size.first);
    plane.columns = places(0, size.second);
    plane.vertical = shrunk_extents(axes[0], rows, size.first);
    plane.horizontal = shrunk_extents(axes[1], columns, size.second);
    const std::vector<Tap> down = bilinear_taps(rows.size(), size.first);
    const std::vector<Tap> along = bilinear_taps(columns.size(), size.second);
    for (const Tap& v : down) {
        for (const Tap& h : along) {
            const std::array<float, 2> vertical{1 - v.weight, v.weight};
            const std::array<float, 2> horizontal{1 - h.weight, h.weight};
            float heaviest = -1;
            std::int32_t crop = no_crop;
            for (std::size_t tap = 0; tap < 4; ++tap) {
                const std::int64_t row = rows.begin + (tap < 2 ? v.first : v.second);
                const std::int64_t column = columns.begin + (tap % 2 == 0 ? h.first : h.second);
                const Patch patch = patch_at(shape, row, column, tiles);
                const float weight = vertical[tap / 2] * horizontal[tap % 2];
                plane.index.push_back(patch.index);
                plane.weight.push_back(weight);
                if (weight > heaviest) {
                    heaviest = weight;
                    crop = patch.crop;
                }
            }
            plane.crop.push_back(crop);
        }
    }
    return plane;
}

TokenPlan plan_tokens(const std::vector<Plane>& planes, std::int64_t crops, std::int64_t patches,
                      std::int64_t overview) {
    std::int64_t tokens = 0;
    for (const Plane& plane : planes) tokens += plane.tokens();
    const auto count = static_cast<std::size_t>(tokens);
    const auto taps = static_cast<std::size_t>(planes.front().taps);
    TokenPlan plan;
    plan.crops = crops;
    plan.taps = planes.front().taps;
    plan.overview = overview;
    plan.grid.assign(count * 3, no_crop);
    plan.newline.assign(count, no_crop);
    plan.pack_index.assign(count * taps, static_cast<std::int32_t>(crops * patches));
    plan.pack_weight.assign(count * taps, 0.0F);
    for (std::size_t token = 0; token < count; ++token) plan.pack_weight[token * taps] = 1.0F;
    plan.boxes.assign(count * 4, std::numeric_limits<float>::quiet_NaN());
    std::int64_t place = 0;
    for (const Plane& plane : planes) {
        write_plane(plane, place, plan);
        place += plane.tokens();
    }
    plan.padding.resize(count);
    for (std::size_t token = 0; token < count; ++token) {
        const float* box = &plan.boxes[token * 4];
        plan.padding[token] = box[0] >= box[2] || box[1] >= box[3] ? 1 : 0;
    }
    return plan;
}

}  // namespace trtprune::images
