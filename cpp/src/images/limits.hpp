#pragma once

#include <cstdint>

namespace trtprune::images {

constexpr std::int64_t default_max_pixels = std::int64_t{64} << 20;
constexpr const char* max_pixels_variable = "TRTPRUNE_MAX_PIXELS";

/// The pixel limit: `value`, or if that is 0 `$TRTPRUNE_MAX_PIXELS`, or 64 Mi pixels.
///
/// \throws InputError  for a limit below 1, or a variable that is no number.
std::int64_t max_pixels_from(std::int64_t value);

}  // namespace trtprune::images
