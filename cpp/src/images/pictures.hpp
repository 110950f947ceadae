#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <trtprune/image.hpp>

#include "images/pixels.hpp"

/// From an image file to upright 8-bit RGB; the twin of `trtprune.runtime.pictures`.
///
/// Images are untrusted input: the size is checked in the header before anything is decoded.
namespace trtprune::images {

/// Reads a file; arguments and errors as `Image::from_file`.
Pixels picture_from_file(const std::string& path, const ImageOptions& options);

/// Reads the bytes of a file; arguments and errors as `Image::from_memory`.
Pixels picture_from_memory(const std::uint8_t* data, std::size_t size, const ImageOptions& options);

}  // namespace trtprune::images
