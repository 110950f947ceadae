#pragma once

#include <optional>
#include <string>

#include "engine_dir/schema.hpp"

namespace trtprune::engine_dir {

/// The first fault of the values of `config.json` that become sizes, names or look-ups, a text that begins with the
/// field; the twin of `trtprune.engine_dir.checking`.
std::optional<std::string> wrong_values(const EngineDir& directory);

}  // namespace trtprune::engine_dir
