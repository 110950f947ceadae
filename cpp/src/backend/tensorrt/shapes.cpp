#include "backend/tensorrt/shapes.hpp"

#include <algorithm>
#include <trtprune/error.hpp>
#include <utility>
#include <vector>

#include "backend/tensor_names.hpp"

namespace trtprune::backend::tensorrt {

namespace {

using engine_dir::ComponentInfo;
using engine_dir::Profile;
using engine_dir::TensorSpec;

constexpr const char* again = "build it again";

bool fits(const Shape& have, const Shape& low, const Shape& high) {
    if (have.size() != low.size() || have.size() != high.size()) return false;
    for (std::size_t i = 0; i < have.size(); ++i) {
        if (have[i] < low[i] || have[i] > high[i]) return false;
    }
    return true;
}

/// The product of all sizes of these shapes; only compared, so that a float64 is exact enough.
double volume_of(const std::vector<const Shape*>& shapes) {
    double product = 1;
    for (const Shape* shape : shapes) {
        for (const std::int64_t size : *shape) product *= static_cast<double>(std::max<std::int64_t>(size, 1));
    }
    return product;
}

const Shape* find(const Shapes& shapes, const Shapes& values, const std::string& name) {
    if (const auto value = values.find(name); value != values.end()) return &value->second;
    const auto shape = shapes.find(name);
    return shape == shapes.end() ? nullptr : &shape->second;
}

std::string dimension_name(const ComponentInfo& component, const std::string& input, std::size_t axis) {
    for (const TensorSpec& spec : component.inputs) {
        if (spec.name != input || axis >= spec.shape.size()) continue;
        const auto* name = std::get_if<std::string>(&spec.shape[axis]);
        return name == nullptr ? "" : *name;
    }
    return "";
}

/// Throws the error for an input outside of every profile; it names the dimension.
[[noreturn]] void refuse(const ComponentInfo& component, const std::string& name, const Shape& have, const Shape& low,
                         const Shape& high) {
    const auto text = [](std::int64_t number) { return std::to_string(number); };
    if (name == names::keep) {
        throw BudgetError("--keep " + text(have.at(0)) + ": the engines were built for " + text(low.at(0)) + " to " +
                              text(high.at(0)),
                          "build with a wider --keep-range");
    }
    std::size_t axis = 0;
    for (std::size_t i = 0; i < std::min(have.size(), low.size()); ++i) {
        if (have[i] < low[i] || have[i] > high[i]) {
            axis = i;
            break;
        }
    }
    const std::string size = text(have.at(axis));
    const std::string limit = text(high.at(axis));
    const std::string dim = dimension_name(component, name, axis);
    if (dim == "capacity") {
        throw BackendError(component.name + ": a cache of " + size + " tokens; the engine has " + limit,
                           "build with another --max-seq-len");
    }
    if (have.at(axis) < low.at(axis)) {
        throw InputError(component.name + ": " + name + " has shape " + shown(have) + "; the engine takes at least " +
                         shown(low));
    }
    if (dim == "tokens" || dim == "text_tokens") {
        throw InputError("the prompt has " + size +
                             " tokens before its pictures take their places; the engines were built for " + limit,
                         "shorten it, or build with a larger --max-input-len");
    }
    if (dim == "text_segments") {
        throw InputError(
            "the question fills " + size + " segments of CLIP's text tower; the engines were built for " + limit,
            "shorten it, or build with a larger --max-input-len");
    }
    if (dim == "sequence") {
        throw InputError(
            "the prompt has " + size + " tokens of text and kept visual ones; the engines take " + limit + " at once",
            "a shorter prompt, fewer pictures or a smaller --keep, or build with a larger --max-input-len"
            " or --max-images");
    }
    if (dim == "batch") {
        throw InputError(component.name + ": " + size + " rows at once; the engines were built for " + limit,
                         "a smaller batch, or build with a larger --max-batch-size");
    }
    throw BackendError(component.name + ": input " + name + " has shape " + shown(have) + "; the engine takes " +
                       shown(high) + " at most");
}

}  // namespace

std::int64_t cache_capacity(const ComponentInfo& component) {
    for (const Profile& profile : component.profiles) {
        for (const auto& [name, range] : profile) {
            if (names::is_past(name)) return range[2].at(2);
        }
    }
    return 0;
}

std::int64_t cache_bytes(const engine_dir::EngineDir& config) {
    std::int64_t tokens = 0;
    for (const ComponentInfo& component : config.components) {
        std::int64_t cached = 0;
        for (const TensorSpec& spec : component.inputs) cached += names::is_past(spec.name) ? 1 : 0;
        tokens += cached / 2 * cache_capacity(component);  // a layer has keys and values
    }
    return tokens * config.kv.bytes_per_token / std::max<std::int64_t>(config.kv.num_layers, 1);
}

std::int64_t max_batch(const ComponentInfo& component) {
    std::int64_t most = 0;
    for (const TensorSpec& spec : component.inputs) {
        const auto* first = spec.shape.empty() ? nullptr : std::get_if<std::string>(&spec.shape[0]);
        if (first == nullptr || *first != "batch") continue;
        for (const Profile& profile : component.profiles) {
            if (const auto range = profile.find(spec.name); range != profile.end()) {
                most = std::max(most, range->second[2].at(0));
            }
        }
    }
    return std::max<std::int64_t>(most, 1);
}

PlannedCall plan_call(const ComponentInfo& component, const std::vector<TensorSpec>& inputs,
                      const std::vector<TensorSpec>& outputs, const Tensors& arrays, const Shapes& values) {
    Dims dims = bind_dims(inputs, arrays);
    for (const auto& [name, value] : values) {
        if (value.size() == 1) dims[name] = value[0];
    }
    Shapes shapes;
    for (const auto& [name, array] : arrays) shapes[name] = array.shape();
    PlannedCall call{choose_profile(component, shapes, values), {}};
    for (const TensorSpec& spec : outputs) {
        const std::optional<Shape> shape = resolve_shape(spec, dims);
        if (!shape) throw BackendError("output " + spec.name + ": its shape does not follow from the inputs");
        call.outputs[spec.name] = *shape;
    }
    return call;
}

int choose_profile(const ComponentInfo& component, const Shapes& shapes, const Shapes& values) {
    if (component.profiles.empty()) return 0;
    int best = -1;
    double least = 0;
    const Profile* widest = nullptr;
    double most = -1;
    for (std::size_t number = 0; number < component.profiles.size(); ++number) {
        const Profile& profile = component.profiles[number];
        bool serves = true;
        std::vector<const Shape*> used;
        std::vector<const Shape*> all;
        for (const auto& [name, range] : profile) {
            all.push_back(&range[2]);
            const Shape* have = find(shapes, values, name);
            if (have == nullptr) continue;
            used.push_back(&range[2]);
            serves = serves && fits(*have, range[0], range[2]);
        }
        if (const double size = volume_of(used); serves && (best < 0 || size < least)) {
            best = static_cast<int>(number);
            least = size;
        }
        if (const double size = volume_of(all); size > most) {
            widest = &profile;
            most = size;
        }
    }
    if (best >= 0) return best;
    for (const auto& [name, range] : *widest) {
        const Shape* have = find(shapes, values, name);
        if (have != nullptr && !fits(*have, range[0], range[2])) refuse(component, name, *have, range[0], range[2]);
    }
    throw BackendError(component.name + ": no optimisation profile serves this call", again);
}

}  // namespace trtprune::backend::tensorrt
