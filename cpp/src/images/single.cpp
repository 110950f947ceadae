#include "images/single.hpp"

#include <algorithm>
#include <trtprune/error.hpp>

#include "files/shown.hpp"
#include "images/anyres.hpp"
#include "images/planes.hpp"

namespace trtprune::images {

namespace {

constexpr const char* pads = "LlavaImageProcessor";
constexpr const char* siglip = "SiglipImageProcessor";
constexpr std::array<const char*, 5> kinds{"CLIPImageProcessor", "CLIPFeatureExtractor", "BitImageProcessor", pads,
                                           siglip};

// transformers' defaults of the processor's class.
Json defaults(const std::string& kind) {
    Json values = {
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
        {"do_pad", false},
    };
    if (kind == siglip) {
        values["size"] = {{"height", 224}, {"width", 224}};
        values["do_center_crop"] = false;
        values["image_mean"] = {0.5, 0.5, 0.5};
        values["image_std"] = {0.5, 0.5, 0.5};
    }
    return values;
}

std::string without_suffix(std::string name) {
    for (const std::string suffix : {"Fast", "Pil"}) {
        if (name.size() >= suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0) {
            name.resize(name.size() - suffix.size());
        }
    }
    return name;
}

// The class's name of a file; raises EngineDirError for one that is not supported.
std::string kind_of(const Json& kind, const std::string& where) {
    const std::string name = kind.is_string() ? without_suffix(kind.get<std::string>()) : "";
    if (std::find(kinds.begin(), kinds.end(), name) != kinds.end()) return name;
    std::string supported;
    for (const char* other : kinds) supported += (supported.empty() ? "" : ", ") + std::string(other);
    const std::string what = kind.is_string() ? "image processor " : "image_processor_type ";
    throw EngineDirError(where + ": " + what + files::shown(kind) + " is not supported", "supported: " + supported);
}

// The setting that names the class.
Json written_kind(const Json& settings) {
    for (const char* name : {"image_processor_type", "feature_extractor_type"}) {
        const Json& kind = optional_member(settings, name);
        if (is_true(kind)) return kind;
    }
    return kinds[0];
}

// The plan of features that begin with the CLS token.
TokenPlan with_cls(const TokenPlan& plan) {
    TokenPlan result = plan;
    result.grid.insert(result.grid.begin(), {0, no_crop, no_crop});
    std::array<float, 4> whole{plan.boxes[0], plan.boxes[1], plan.boxes[2], plan.boxes[3]};
    for (std::size_t i = 0; i < plan.boxes.size(); ++i) {
        const std::size_t side = i % 4;
        whole[side] = side < 2 ? std::min(whole[side], plan.boxes[i]) : std::max(whole[side], plan.boxes[i]);
    }
    result.boxes.insert(result.boxes.begin(), whole.begin(), whole.end());
    result.padding.insert(result.padding.begin(), 0);
    return result;
}

// The plan of features without the first patch.
TokenPlan without_first(const TokenPlan& plan) {
    TokenPlan result = plan;
    result.grid.erase(result.grid.begin(), result.grid.begin() + 3);
    result.boxes.erase(result.boxes.begin(), result.boxes.begin() + 4);
    result.padding.erase(result.padding.begin());
    return result;
}

TokenPlan shifted(const TokenPlan& plan, std::int64_t first_patch) {
    TokenPlan result = first_patch > 0 ? without_first(plan) : with_cls(plan);
    const std::size_t count = result.padding.size();
    result.newline.assign(count, no_crop);
    result.pack_weight.assign(count, 1.0F);
    result.pack_index.resize(count);
    for (std::size_t i = 0; i < count; ++i) result.pack_index[i] = static_cast<std::int32_t>(i);
    return result;
}

}  // namespace

// -- settings

Single::Single(const Json& values, bool pads_image) : shape_(crop_shape(values)), steps_(values) {
    if (pads_image && flag(values, "do_pad")) background_ = background(values);
}

Single::Colour Single::background(const Json& values) {
    Channels colour{};
    if (!optional_member(values, "background").is_null()) {
        colour = channels("background", member(values, "background"));
    } else {
        const Channels mean = channels("image_mean", member(values, "image_mean"));
        for (const double value : mean) {
            if (value >= 0 && value <= 1) continue;
            throw SettingError("image_mean " + tuple_repr(mean) + " is no colour to pad with: values are 0 to 1");
        }
        for (std::size_t i = 0; i < 3; ++i) colour[i] = mean[i] * 255;
    }
    Colour result{};
    for (std::size_t i = 0; i < 3; ++i) {
        if (!(colour[i] >= 0 && colour[i] <= 255)) {
            throw SettingError("background " + tuple_repr(colour) + " is no colour: values are 0 to 255");
        }
        result[i] = static_cast<std::uint8_t>(colour[i]);
    }
    return result;
}

std::unique_ptr<Processor> Single::from_settings(const Json& settings, const std::string& where) {
    const Json kind = written_kind(settings);
    const std::string name = kind_of(kind, where);
    const Json values = with_defaults(defaults(name), settings);
    std::unique_ptr<Single> processor = named(where, [&] {
        const Json& layout = optional_member(values, "layout");
        if (!layout.is_null() && layout != "model") {
            throw SettingError("layout " + files::shown(layout) + " is none of model");
        }
        return std::unique_ptr<Single>(new Single(values, name == pads));
    });
    if (name != pads && is_true(member(values, "do_pad"))) {
        throw EngineDirError(where + ": do_pad of " + kind.get<std::string>() + " is not supported",
                             "set do_pad to false");
    }
    const std::optional<Size> size = processor->fixed_size();
    const Size expected{processor->shape_.height, processor->shape_.width};
    if (size && *size != expected) {
        throw EngineDirError(
            where + ": makes pictures of " + tuple_repr(*size) + ", the vision graph takes " + tuple_repr(expected),
            "size, crop_size and the vision_config's image_size must agree");
    }
    return processor;
}

std::optional<Size> Single::fixed_size() const {
    const auto& resize = steps_.resize();
    const bool exact = resize && !resize->shortest;
    // A square stays one.
    if (steps_.crop() || exact || (resize && background_)) return steps_.size_after({1, 1});
    return {};
}

// -- sizes

Size Single::outer(Size image) const {
    const std::int64_t side = std::max(image.first, image.second);
    return background_ ? Size{side, side} : image;
}

std::int64_t Single::pixels_taken(std::int64_t width, std::int64_t height, std::int64_t /*images*/) const {
    const Size size = outer({height, width});
    return std::max(area(size), area(steps_.size_after_resize(size)));
}

// -- plan and pixels

TokenPlan Single::plan(std::int64_t height, std::int64_t width, std::int64_t /*images*/) const {
    check_size(height, width);
    const Size image{height, width};
    const Size whole = outer(image);
    const Size size = steps_.size_after(whole);
    const Size expected{shape_.height, shape_.width};
    if (size != expected) {
        throw InputError(
            "the picture becomes " + tuple_repr(size) + " pixels; this model takes exactly " + tuple_repr(expected),
            "its image processor neither crops nor resizes to a fixed size: scale the picture yourself");
    }
    const Axes axes = axes_of(shape_, steps_.geometry(whole), image, image, whole, whole);
    const Plane plane = plane_of_crops(shape_, axes, {0, shape_.rows()}, {0, shape_.columns()}, {});
    const TokenPlan tokens = plan_tokens({plane}, 1, shape_.patches(), 0);
    return shape_.first_patch == 0 ? tokens : shifted(tokens, shape_.first_patch);
}

Prepared Single::prepare(const Image& image, std::int64_t images) const {
    if (pixels_taken(image.width(), image.height(), images) > size_limit * size_limit) {
        throw InputError(
            "a picture of " + std::to_string(image.width()) + " × " + std::to_string(image.height()) + " is too narrow",
            "crop it");
    }
    Prepared prepared;
    prepared.plan = std::make_shared<const TokenPlan>(plan(image.height(), image.width(), images));
    prepared.crops = 1;
    prepared.height = shape_.height;
    prepared.width = shape_.width;
    prepared.pixel_values.resize(static_cast<std::size_t>(3 * shape_.height * shape_.width));
    const PixelView view = view_of(image);
    const Pixels crop = background_ ? steps_.pixels(padded_square(view, *background_).view()) : steps_.pixels(view);
    steps_.values(crop, prepared.pixel_values.data());
    return prepared;
}

}  // namespace trtprune::images
