#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace trtprune::images {

/// The orientation in a file's metadata, as Pillow finds it: the EXIF tag, or else the text of XMP; 1 if there is none.
///
/// \param exif  The content of an EXIF segment, with or without `Exif\0\0`.
/// \param xmp   XMP's XML; may be empty.
/// \throws Damaged  for EXIF data that is no TIFF.
int orientation_of(const std::optional<std::string>& exif, std::string_view xmp);

}  // namespace trtprune::images
