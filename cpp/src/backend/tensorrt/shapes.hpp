#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "backend/binding.hpp"
#include "engine_dir/schema.hpp"

/// Shapes at run time: the profile of a call, and the shapes of its outputs; the twin of `shapes.py`.
///
/// A call beyond the limits is refused here, in words of the command line, before TensorRT refuses it in its own.
namespace trtprune::backend::tensorrt {

using Shapes = std::map<std::string, Shape, std::less<>>;

/// Tokens in the cache of a row of a component's engine; 0 without a cache.
std::int64_t cache_capacity(const engine_dir::ComponentInfo& component);

/// Bytes of one row's caches in all components.
std::int64_t cache_bytes(const engine_dir::EngineDir& config);

/// The largest number of rows of one run of a component.
std::int64_t max_batch(const engine_dir::ComponentInfo& component);

/// A call's profile number and the shape of every output.
struct PlannedCall {
    int profile;
    Shapes outputs;
};

/// The profile and the output shapes of a call.
///
/// \param component        The component with the profiles.
/// \param inputs, outputs  Its tensors without the cache.
/// \param arrays           The caller's inputs.
/// \param values           Content of the inputs whose values decide shapes.  An output dimension with the name of such
///                         an input has its value: `pruned_features` [batch, keep, D].
/// \throws InputError, BudgetError  for a call beyond the engine's limits.
/// \throws BackendError             for inputs that do not fit the graph.
PlannedCall plan_call(const engine_dir::ComponentInfo& component, const std::vector<engine_dir::TensorSpec>& inputs,
                      const std::vector<engine_dir::TensorSpec>& outputs, const Tensors& arrays, const Shapes& values);

/// The narrowest profile of the component that serves these shapes, so that single tokens get their own profile.
///
/// \throws InputError, BudgetError, BackendError  naming the flag to build with, if none does.
int choose_profile(const engine_dir::ComponentInfo& component, const Shapes& shapes, const Shapes& values);

}  // namespace trtprune::backend::tensorrt
