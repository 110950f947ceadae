#pragma once

#include <string>

#include "engine_dir/schema.hpp"

namespace trtprune::engine_dir {

/// Reads and checks an engine directory; everything is checked before anything is used.
///
/// \param path    The directory of a build.  Unlike Python's it is never looked for on the Hugging Face hub; one that
/// was
///                downloaded into the hub's cache can be opened there.
/// \param verify  `none` (only that files exist), `fast` (graphs and small files in full, weights by header and size,
///                engines by their first MiB and size), `full` (every byte that was hashed at build), `auto` (full up
///                to 1 GiB of weights and engines, else fast).
/// \throws EngineDirError  naming the file or field at fault.
EngineDir open_engine_dir(const std::string& path, const std::string& verify = "auto");

}  // namespace trtprune::engine_dir
