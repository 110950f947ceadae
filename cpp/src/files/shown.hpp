#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace trtprune::files {

/// A value of a JSON file as quoted in a message, in Python's spelling: `trtprune.errors.shown`.
///
/// The beginning of its `repr`, made without the rest of it: 8 items of a list, 4 of an object, 3 levels, 120
/// characters of a text.
std::string shown(const nlohmann::json& value);

/// A number as Python's `repr` has it: the fewest digits that give it back, `0.1`, `28.0`, `1e-05`, `inf`.
std::string float_repr(double value);

}  // namespace trtprune::files
