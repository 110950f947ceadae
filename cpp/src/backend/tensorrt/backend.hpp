#pragma once

#include <memory>

#include "backend/session.hpp"

namespace trtprune::backend::tensorrt {

/// Runs the engines of a directory in TensorRT, on one GPU.  Refusals come before anything is loaded: another version,
/// another GPU, too little memory.
///
/// Options: `device_id`, the GPU's number; `cuda_graph` = `on` (default) or `off`, whether a decode step is recorded
/// once and launched as a whole.
///
/// \throws BackendError  if the library or the GPU is missing, or cannot run these engines.
std::unique_ptr<Backend> open(const engine_dir::EngineDir& config, const LoadOptions& options);

}  // namespace trtprune::backend::tensorrt
