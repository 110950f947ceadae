#pragma once

#include <string>
#include <string_view>

/// Paths in `config.json`: relative, and inside the engine directory; the twin of `trtprune.engine_dir.paths`.
namespace trtprune::engine_dir {

/// A path as Python's `pathlib` writes it: without `.`, doubled slashes and a slash at the end; `.` if nothing is left.
std::string plain_path(std::string_view path);

/// A path below a folder; `relative` itself if it is absolute.
std::string join_path(const std::string& folder, std::string_view relative);

/// The path of the file `relative` in the engine directory `root`.
///
/// In the cache of the Hugging Face hub a directory, `snapshots/COMMIT`, has links into the `blobs` of the same
/// repository; their targets count as files of the directory.
///
/// \throws EngineDirError  if it leaves the directory, by its text or by a symbolic link, or is not a path.
std::string inside(const std::string& root, const std::string& relative);

}  // namespace trtprune::engine_dir
