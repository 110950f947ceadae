#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine_dir/schema.hpp"

/// Reading the `config.json` of an engine directory, and checking its files against it; the twin of
/// `trtprune.engine_dir.reading`.
namespace trtprune::engine_dir {

/// The `config.json` of an engine directory, with all checks that need no other file.
///
/// \param root  The directory.
/// \throws EngineDirError  naming the field at fault.
EngineDir read_config(const std::string& root);

/// The same from the text of the file.
///
/// \param text  The bytes of `config.json`.
/// \param root  The directory, for messages and paths.
EngineDir parse_config(const std::string& text, const std::string& root);

/// A check that is still to be made.  It throws an EngineDirError that names the file.
using Check = std::function<void()>;

/// Compares the files with the digests in `config.json`, but for the whole bytes of weights, which take longest.
///
/// \param verify  As in `open_engine_dir`.
/// \return The comparison of the weights' bytes.  It keeps what it needs.
/// \throws EngineDirError  naming the first file that is missing, unlisted or different.
std::vector<Check> check_files(const EngineDir& directory, const std::string& verify);

}  // namespace trtprune::engine_dir
