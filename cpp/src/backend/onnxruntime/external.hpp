#pragma once

#include <filesystem>
#include <string>
#include <utility>

namespace trtprune::backend::onnxruntime {

/// A serialised graph, and the folder of its relative weight locations, for ONNX Runtime, which accepts weights only
/// below that folder.
///
/// Both are returned unchanged, except where weights are links out of the folder, as in the cache of the Hugging Face
/// hub: ONNX Runtime refuses such links, so the graph gets the names of their target files.  The allowed targets are
/// checked before, when the directory is opened.
///
/// \throws EngineDirError  if the graph cannot be read, or a link leads nowhere.
std::pair<std::string, std::filesystem::path> located(std::string graph, const std::filesystem::path& folder);

}  // namespace trtprune::backend::onnxruntime
