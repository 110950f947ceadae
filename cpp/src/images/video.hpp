#pragma once

#include <string>
#include <string_view>

namespace trtprune::images {

/// The container of a video by its first bytes, such as `MP4`; empty for anything else.
std::string video_kind(std::string_view head);

}  // namespace trtprune::images
