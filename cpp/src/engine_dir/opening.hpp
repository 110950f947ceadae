#pragma once

#include <string>
#include <vector>

#include "engine_dir/reading.hpp"
#include "engine_dir/schema.hpp"

namespace trtprune::engine_dir {

/// An engine directory of which only the bytes of the weights are unchecked.
struct Opening {
    EngineDir directory;
    std::vector<Check> checks;  ///< comparisons of the weights' bytes with their digests
};

/// Reads and checks an engine directory, but for the bytes of its weights: these are numbers, which may be loaded while
/// they are compared, as long as nothing is answered before that is done.
///
/// \param path    The directory of a build.  Unlike Python's it is never looked for on the Hugging Face hub; one that
///                was downloaded into the hub's cache can be opened there.
/// \param verify  `none` (only that files exist), `fast` (graphs and small files in full, weights by header and size,
///                engines by their first MiB and size), `full` (every byte that was hashed at build), `auto` (full up
///                to 1 GiB of weights and engines, else fast).
/// \throws EngineDirError  naming the file or field at fault.
Opening begin_engine_dir(const std::string& path, const std::string& verify = "auto");

/// The same with all of its checks.
EngineDir open_engine_dir(const std::string& path, const std::string& verify = "auto");

}  // namespace trtprune::engine_dir
