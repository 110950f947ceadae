#include "backend/binding.hpp"

#include <algorithm>
#include <set>
#include <trtprune/error.hpp>

#include "backend/tensor_names.hpp"

namespace trtprune::backend {

using engine_dir::Dimension;
using engine_dir::TensorSpec;

namespace {

constexpr const char* again = "if config.json says otherwise than the graphs, build the directory again";

// As Python prints a list of sizes and names: ['batch', 64].
std::string shown_dims(const std::vector<Dimension>& shape) {
    std::string text = "[";
    for (const Dimension& dim : shape) {
        if (text.size() > 1) text += ", ";
        const auto* size = std::get_if<std::int64_t>(&dim);
        text += size != nullptr ? std::to_string(*size) : "'" + std::get<std::string>(dim) + "'";
    }
    return text + "]";
}

bool fits(const TensorSpec& spec, const Shape& shape, Dims& dims) {
    if (shape.size() != spec.shape.size()) return false;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        const auto* size = std::get_if<std::int64_t>(&spec.shape[i]);
        const std::int64_t want =
            size != nullptr ? *size : dims.emplace(std::get<std::string>(spec.shape[i]), shape[i]).first->second;
        if (want != shape[i]) return false;
    }
    return true;
}

}  // namespace

std::vector<CachePair> cache_pairs(const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs) {
    std::map<std::string, const TensorSpec*> present;
    for (const TensorSpec& spec : outputs) {
        if (names::is_present(spec.name)) present[spec.name] = &spec;
    }
    std::vector<CachePair> pairs;
    for (const TensorSpec& spec : inputs) {
        if (!names::is_past(spec.name)) continue;
        const std::string name = names::present_of(spec.name);
        const auto partner = present.find(name);
        if (partner == present.end() || partner->second->dtype != spec.dtype ||
            partner->second->shape.size() != spec.shape.size()) {
            throw BackendError("graph input " + spec.name + " has no output " + name + " of its shape",
                               "build it again");
        }
        present.erase(partner);
        pairs.push_back({spec.name, name, spec});
    }
    if (!present.empty()) {
        throw BackendError("graph output " + present.begin()->first + " has no cache input", "build it again");
    }
    return pairs;
}

std::vector<TensorSpec> without_cache(const std::vector<TensorSpec>& specs) {
    std::vector<TensorSpec> rest;
    std::copy_if(specs.begin(), specs.end(), std::back_inserter(rest),
                 [](const TensorSpec& spec) { return !names::is_past(spec.name) && !names::is_present(spec.name); });
    return rest;
}

Dims bind_dims(const std::vector<TensorSpec>& specs, const Tensors& inputs) {
    Dims dims;
    std::set<std::string_view> known;
    for (const TensorSpec& spec : specs) {
        known.insert(spec.name);
        const auto found = inputs.find(spec.name);
        if (found == inputs.end()) throw BackendError("input " + spec.name + " is missing", again);
        const Tensor& array = found->second;
        if (!fits(spec, array.shape(), dims)) {
            throw BackendError("input " + spec.name + " has shape " + shown(array.shape()) + "; the graph takes " +
                                   shown_dims(spec.shape),
                               again);
        }
        if (dtype_name(array.dtype()) != spec.dtype) {
            throw BackendError("input " + spec.name + " is " + std::string(dtype_name(array.dtype())) +
                                   "; the graph takes " + spec.dtype,
                               again);
        }
    }
    for (const auto& [name, array] : inputs) {
        if (known.count(name) == 0) throw BackendError("the graph has no input " + name, again);
    }
    return dims;
}

std::optional<Shape> resolve_shape(const TensorSpec& spec, const Dims& dims) {
    Shape shape;
    for (const Dimension& dim : spec.shape) {
        if (const auto* size = std::get_if<std::int64_t>(&dim)) {
            shape.push_back(*size);
            continue;
        }
        const auto known = dims.find(std::get<std::string>(dim));
        if (known == dims.end()) return std::nullopt;
        shape.push_back(known->second);
    }
    return shape;
}

bool same_tensors(const std::vector<TensorSpec>& specs, const GraphTensors& tensors) {
    if (specs.size() != tensors.size()) return false;
    return std::all_of(specs.begin(), specs.end(), [&](const TensorSpec& spec) {
        const auto found = tensors.find(spec.name);
        if (found == tensors.end() || found->second.size() != spec.shape.size()) return false;
        for (std::size_t i = 0; i < spec.shape.size(); ++i) {
            const auto* size = std::get_if<std::int64_t>(&spec.shape[i]);
            const std::int64_t have = found->second[i];
            if (size != nullptr && have >= 0 && *size != have) return false;
        }
        return true;
    });
}

}  // namespace trtprune::backend
