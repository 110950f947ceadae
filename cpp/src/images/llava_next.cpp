#include "images/llava_next.hpp"

namespace trtprune::images {

namespace {

constexpr const char* model = "model";
constexpr const char* paper = "paper";

// transformers' defaults of the processor's class.
Json defaults() {
    return {
        {"do_resize", true},
        {"size", {{"shortest_edge", 224}}},
        {"resample", 3},
        {"do_center_crop", true},
        {"crop_size", {{"height", 224}, {"width", 224}}},
        {"do_rescale", true},
        {"rescale_factor", 1.0 / 255},
        {"do_normalize", true},
        {"image_mean", {0.48145466, 0.4578275, 0.40821073}},
        {"image_std", {0.26862954, 0.26130258, 0.27577711}},
        {"do_pad", true},
        {"image_grid_pinpoints", {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}}},
        {"layout", model},
    };
}

}  // namespace

LlavaNext::LlavaNext(const Json& values) : AnyRes(values, {model, paper}) {}

std::unique_ptr<Processor> LlavaNext::from_settings(const Json& settings, const std::string& where) {
    return named(where, [&] { return std::unique_ptr<Processor>(new LlavaNext(with_defaults(defaults(), settings))); });
}

Plane LlavaNext::tile_plane(Size image, const Axes& axes, Size tiles) const {
    const Size patches{tiles.first * shape().rows(), tiles.second * shape().columns()};
    const bool whole = layout() == paper;
    const std::array<Range, 2> parts =
        whole ? std::array<Range, 2>{Range{0, patches.first}, Range{0, patches.second}} : unpadded(image, patches);
    const Tiles read{overview_crop + 1, tiles.second, taps(), whole ? Newline::none : Newline::line};
    return plane_of_crops(shape(), axes, parts[0], parts[1], read);
}

}  // namespace trtprune::images
