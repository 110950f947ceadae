#pragma once

#include <string>

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

/// Compares the files with the digests in `config.json`.
///
/// \param verify  As in `open_engine_dir`.
/// \throws EngineDirError  naming the first file that is missing, unlisted or different.
void check_files(const EngineDir& directory, const std::string& verify);

}  // namespace trtprune::engine_dir
