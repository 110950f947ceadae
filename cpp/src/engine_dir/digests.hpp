#pragma once

#include <cstdint>
#include <string>

/// Digests of the files of an engine directory: of every byte, or of a small part of a large file; the twin of
/// `trtprune.engine_dir.digests`.  All raise files::ReadError for a file that cannot be read.
namespace trtprune::engine_dir {

/// Up to this size of all weights and engines together, every byte is checked: that takes little time.
constexpr std::int64_t full_check_bytes = std::int64_t{1} << 30;

/// `sha256:HEX` of all bytes of a file.
std::string digest_file(const std::string& path);

/// `sha256-header-size:HEX` of a safetensors file: its header and its size, not its data.
std::string digest_weights(const std::string& path);

/// `sha256-head-size:HEX` of a large file: its first MiB and its size.
std::string digest_head(const std::string& path);

}  // namespace trtprune::engine_dir
