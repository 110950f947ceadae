#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "files/text_error.hpp"
#include "images/processor.hpp"

/// Readers for the settings of an image processor: values of an untrusted JSON file.
///
/// Each raises SettingError with the setting's name and its fault; `named` turns that into one line that begins with
/// the file's name.
namespace trtprune::images {

/// Largest side in a setting, in pixels.
constexpr std::int64_t size_limit = 16384;

/// (height, width).
using Size = std::pair<std::int64_t, std::int64_t>;
using Channels = std::array<double, 3>;
using Json = nlohmann::json;

/// A setting that is none.
class SettingError : public files::TextError {
  public:
    using TextError::TextError;
};

/// The EngineDirError of a SettingError, which begins with the file's name.
[[noreturn]] void raise_named(const SettingError& error, const std::string& where);

/// The result of `function`, its SettingErrors as EngineDirErrors that begin with the file's name `where`.
template <class Function>
auto named(const std::string& where, Function function) {
    try {
        return function();
    } catch (const SettingError& error) {
        raise_named(error, where);
    }
}

/// Settings over a class's defaults; a setting that is null counts as missing.
Json with_defaults(const Json& defaults, const Json& settings);

/// A setting that must be there.
const Json& member(const Json& values, const std::string& name);

/// A setting, null if it is missing.
const Json& optional_member(const Json& values, const std::string& name);

/// Whether Python would take a value for true.
bool is_true(const Json& value);

/// Whether Python would take a value for an integer: booleans are.
bool is_int(const Json& value);

/// A setting that is true or false, also as 1 or 0.
bool flag(const Json& values, const std::string& name);

/// An integer between two limits, both included.
std::int64_t whole_number(const std::string& name, const Json& value, std::int64_t least, std::int64_t most);

/// A number that float32 can hold.
double number(const std::string& name, const Json& value);

/// Numbers for red, green and blue; a single number stands for all three.
Channels channels(const std::string& name, const Json& value);

/// The number of a Pillow filter.
int resample_filter(const Json& value);

/// A side in pixels.
std::int64_t edge(const std::string& name, const Json& value);

/// A size as {"height": H, "width": W}; a single number stands for both.
Size height_and_width(const std::string& name, const Json& value);

/// The first step's target: the shorter edge, or the size.
struct ResizeTarget {
    bool shortest = false;
    std::int64_t first = 0;   ///< the edge, or the height
    std::int64_t second = 0;  ///< the width, of a size
};

/// `size` as a target; `default_to_square` decides for a number.
ResizeTarget resize_target(const Json& values);

/// Resolutions as [[height, width], …], each a multiple of the tile.
///
/// \param name       The setting's name.
/// \param value      The value in the file.
/// \param tile       The side of a tile in pixels.
/// \param max_tiles  Largest number of tiles of a resolution.
std::vector<Size> pinpoint_list(const std::string& name, const Json& value, std::int64_t tile, std::int64_t max_tiles);

/// The member `crop` of a processor's settings.
CropShape crop_shape(const Json& settings);

/// Numbers as a Python tuple, `(0.5, 0.5, 0.5)`.
std::string tuple_repr(const Channels& values);

/// A size as a Python tuple, `(28, 28)`.
std::string tuple_repr(const Size& size);

}  // namespace trtprune::images
