#pragma once

#include <trtprune/trtprune.h>

#include <string>
#include <trtprune/vlm.hpp>
#include <vector>

namespace trtprune::c_api {

/// A text that must be there.
///
/// \throws InputError  for NULL.
std::string text(const char* value, const char* name);

ImageOptions image_options(const trtprune_image_options* given);
LoadOptions load_options(const trtprune_load_options* given);
GenerateOptions generate_options(const trtprune_generate_options* given);

/// The images of handles.
///
/// \throws InputError  for NULL, a handle that is no image, or more than the largest number of images.
std::vector<Image> images(const trtprune_image* const* handles, std::size_t count);

/// The rows of a batch.
std::vector<Request> requests(const trtprune_request* const* given, std::size_t count);

/// The callback as C++ has it; empty for NULL.  What it throws or a negative return is an Error with code `stopped`.
TextCallback callback(trtprune_text_callback on_text, void* user_data);

/// Fills as much of `info` as its `struct_size` says; texts are those of `facts`.
///
/// \throws InputError  for NULL or a size of no version.
void fill(trtprune_info* info, const Info& facts);

}  // namespace trtprune::c_api
