#include "images/tiled.hpp"

#include <algorithm>
#include <trtprune/error.hpp>

#include "files/shown.hpp"
#include "images/anyres.hpp"

namespace trtprune::images {

namespace {

std::string text(std::int64_t value) {
    return std::to_string(value);
}

}  // namespace

Tiled::Tiled(const Json& values) : shape_(crop_shape(values)) {
    if (shape_.height != shape_.width || shape_.rows() != shape_.columns()) {
        throw SettingError("crops of " + text(shape_.height) + " × " + text(shape_.width) + " pixels are not square");
    }
    if (shape_.first_patch != 0) {
        throw SettingError("crops of this processor have a feature for each visual token, and none beside");
    }
    const Json& layout = member(values, "layout");
    if (layout != "model") throw SettingError("layout " + files::shown(layout) + " is none of model");
}

std::int64_t Tiled::crops_of(Size tiles) {
    const std::int64_t count = area(tiles);
    return count + (count > 1 ? 1 : 0);
}

std::int64_t Tiled::pixels_taken(std::int64_t width, std::int64_t height, std::int64_t /*images*/) const {
    check_size(height, width);
    const Size image{height, width};
    return std::max({area(image), pixels_between(image), crops_of(tiles_of(image)) * area(edge())});
}

TokenPlan Tiled::plan(std::int64_t height, std::int64_t width, std::int64_t /*images*/) const {
    check_size(height, width);
    const Size image{height, width}, tiles = tiles_of(image);
    const std::int64_t count = area(tiles);
    std::vector<Plane> planes;
    for (std::int64_t tile = 0; tile < count; ++tile) planes.push_back(tile_plane(image, tiles, tile, 0));
    if (count > 1) planes.push_back(tile_plane(image, {1, 1}, 0, count));
    const auto crops = static_cast<std::int64_t>(planes.size());
    TokenPlan plan = plan_tokens(planes, crops, shape_.patches(), crops - 1);
    mark(tiles, plan);
    return plan;
}

// The tokens of one tile of a plane of `tiles`, which begins with crop `first`.
Plane Tiled::tile_plane(Size image, Size tiles, std::int64_t tile, std::int64_t first) const {
    const Size plane{tiles.first * shape_.height, tiles.second * shape_.width};
    const Axes axes = axes_of(shape_, steps_.geometry(edge()), image, plane, plane, edge());
    const std::int64_t row = tile / tiles.second * shape_.rows(), column = tile % tiles.second * shape_.columns();
    return plane_of_crops(shape_, axes, {row, row + shape_.rows()}, {column, column + shape_.columns()},
                          {first, tiles.second, 1, Newline::none});
}

Prepared Tiled::prepare(const Image& image, std::int64_t images) const {
    const std::int64_t width = image.width(), height = image.height();
    if (pixels_taken(width, height, images) > size_limit * size_limit) {
        throw InputError("a picture of " + text(width) + " × " + text(height) + " is too large or too narrow",
                         "crop it");
    }
    Prepared prepared;
    prepared.plan = std::make_shared<const TokenPlan>(plan(height, width, images));
    prepared.crops = prepared.plan->crops;
    prepared.height = shape_.height;
    prepared.width = shape_.width;
    const auto size = static_cast<std::size_t>(3 * area(edge()));
    prepared.pixel_values.resize(static_cast<std::size_t>(prepared.crops) * size);
    float* place = prepared.pixel_values.data();
    const Size tiles = tiles_of({height, width});
    const PixelView view = view_of(image);
    const Pixels plane = stretched(view, {tiles.first * shape_.height, tiles.second * shape_.width});
    for (std::int64_t row = 0; row < plane.height; row += shape_.height) {
        for (std::int64_t column = 0; column < plane.width; column += shape_.width) {
            const PixelView tile{plane.row(row) + column * 3, shape_.height, shape_.width, plane.width * 3};
            steps_.values(steps_.pixels(tile), place);
            place += size;
        }
    }
    if (prepared.crops > area(tiles)) steps_.values(whole(view, plane), place);
    return prepared;
}

}  // namespace trtprune::images
