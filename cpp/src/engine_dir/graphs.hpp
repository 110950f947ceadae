#pragma once

#include <set>
#include <string>
#include <string_view>

#include "engine_dir/protobuf.hpp"

/// Facts of an ONNX file that need no weights; the twin of `trtprune.engine_dir.graphs`.
namespace trtprune::engine_dir {

/// The files of a graph's tensors, wherever in it they are named.
///
/// \param model  The bytes of an `.onnx` file.
/// \throws WireError  for bytes that are none.
std::set<std::string> locations_in(std::string_view model);

/// The files of a graph's tensors, relative to the folder of the `.onnx` file, wherever in it they are named.
///
/// \param path  The `.onnx` file.
/// \throws EngineDirError  if it cannot be read, or is no ONNX graph.
std::set<std::string> weight_locations(const std::string& path);

}  // namespace trtprune::engine_dir
