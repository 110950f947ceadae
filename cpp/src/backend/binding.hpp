#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/tensor.hpp"
#include "engine_dir/schema.hpp"

/// A graph's tensors: outputs that share an input's buffer, shapes of a call, and checks of the caller's inputs.
namespace trtprune::backend {

/// A cache input and the output that is the same tensor after the call; both are bound to one buffer.
struct CachePair {
    std::string past;
    std::string present;
    engine_dir::TensorSpec spec;
};

/// The pairs `past_key_values.X` / `present.X` of a graph, in the order of its inputs.
///
/// \throws BackendError  if one has no partner, or a partner of another shape or type: they could not share a buffer.
std::vector<CachePair> cache_pairs(const std::vector<engine_dir::TensorSpec>& inputs,
                                   const std::vector<engine_dir::TensorSpec>& outputs);

/// The tensors without those of the cache.
std::vector<engine_dir::TensorSpec> without_cache(const std::vector<engine_dir::TensorSpec>& specs);

/// The value of each symbolic dimension.
using Dims = std::map<std::string, std::int64_t, std::less<>>;

/// The value of every symbolic dimension, from the shapes of the inputs.
///
/// \throws BackendError  naming a missing input, one of the wrong rank, size or type, or two that disagree.
Dims bind_dims(const std::vector<engine_dir::TensorSpec>& specs, const Tensors& inputs);

/// The shape of a tensor with its symbolic dimensions filled in; not set if one is known only after the call.
std::optional<Shape> resolve_shape(const engine_dir::TensorSpec& spec, const Dims& dims);

/// The tensors of a graph: name and sizes, with -1 for a size that is not fixed.
using GraphTensors = std::map<std::string, Shape, std::less<>>;

/// Whether a graph has exactly these tensors, with equal sizes wherever both sides have a number.
bool same_tensors(const std::vector<engine_dir::TensorSpec>& specs, const GraphTensors& tensors);

}  // namespace trtprune::backend
