#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

/// Reading files of unknown origin: regular files only, never more bytes than a limit; the twin of
/// `trtprune.files.reading`.
namespace trtprune::files {

/// A file that cannot be read; the message is the reason, without the file's name.
class ReadError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// A regular file, open for reading.
class RegularFile {
  public:
    /// \throws ReadError  also for pipes, devices and directories, which are never waited for.
    explicit RegularFile(const std::string& path);
    ~RegularFile();
    RegularFile(const RegularFile&) = delete;
    RegularFile& operator=(const RegularFile&) = delete;

    /// Reads up to `size` bytes at once; the number of bytes, 0 at the end of the file.
    std::size_t read(void* data, std::size_t size);
    /// The size when the file was opened.
    std::int64_t size() const { return size_; }

  private:
    int descriptor_;
    std::int64_t size_;
};

/// The bytes of a regular file; not set if there is no such file.
///
/// \param path   The file; symbolic links are followed.
/// \param limit  Largest size in bytes that is read.
/// \throws ReadError  for what is no regular file, larger than the limit, or not readable.
std::optional<std::string> read_bounded(const std::string& path, std::size_t limit);

}  // namespace trtprune::files
