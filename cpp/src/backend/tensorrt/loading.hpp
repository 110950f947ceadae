#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "backend/tensorrt/library.hpp"
#include "backend/tensorrt/memory.hpp"
#include "engine_dir/schema.hpp"

/// Checks whether the engines of a directory can run here, before TensorRT is called; and loading an engine; the twin
/// of `loading.py`.
///
/// TensorRT's own refusal is NULL and a line in its log, after reading gigabytes; here it is one line that says what to
/// change.
namespace trtprune::backend::tensorrt {

/// The build settings of the engines.
///
/// \throws BackendError  if there are none.
const engine_dir::EngineInfo& engine_info(const engine_dir::EngineDir& config);

/// Refuses engines of another version of the library with a BackendError.
void check_version(const engine_dir::EngineDir& config, const std::string& installed);

/// Refuses engines for other GPUs with a BackendError.
void check_device(const engine_dir::EngineDir& config, const Driver& driver);

/// Device memory that a directory needs for one row, in bytes.
struct Needs {
    std::int64_t engines;    ///< weights of the engines that are not loaded yet, about the size of their files
    std::int64_t workspace;  ///< activations of the running engine; one for all, because they run one after another
    std::int64_t cache_row;  ///< KV cache of one row

    /// The sum, with some reserve.
    std::int64_t total() const;
};

/// Refuses a directory that does not fit, before anything is loaded, with the memory and flags of a build that would.
void check_memory(const engine_dir::EngineDir& config, const Needs& needs, std::int64_t free);

/// An engine from its file, which is memory-mapped, so that it is not in memory twice.
///
/// \throws EngineDirError  if the file cannot be read.
/// \throws BackendError    if TensorRT refuses it, with TensorRT's reason.
std::unique_ptr<nvinfer1::ICudaEngine> load_engine(nvinfer1::IRuntime& runtime, const std::filesystem::path& path);

}  // namespace trtprune::backend::tensorrt
