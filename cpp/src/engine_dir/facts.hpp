#pragma once

#include <string>
#include <trtprune/vlm.hpp>

#include "engine_dir/schema.hpp"

namespace trtprune::engine_dir {

/// The facts of a directory, as `trtprune inspect` prints them.
///
/// \param provider  The provider that runs it.
Info info_of(const EngineDir& directory, const std::string& provider);

}  // namespace trtprune::engine_dir
