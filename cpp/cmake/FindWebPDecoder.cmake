# libwebp, which Debian 12 packages without files of its own for CMake: the target WebPDecoder::WebPDecoder.
find_path(WebPDecoder_INCLUDE_DIR webp/decode.h)
find_library(WebPDecoder_LIBRARY webp)
mark_as_advanced(WebPDecoder_INCLUDE_DIR WebPDecoder_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(WebPDecoder REQUIRED_VARS WebPDecoder_LIBRARY WebPDecoder_INCLUDE_DIR)

if(WebPDecoder_FOUND AND NOT TARGET WebPDecoder::WebPDecoder)
  add_library(WebPDecoder::WebPDecoder UNKNOWN IMPORTED)
  set_target_properties(WebPDecoder::WebPDecoder PROPERTIES
    IMPORTED_LOCATION "${WebPDecoder_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${WebPDecoder_INCLUDE_DIR}")
endif()
