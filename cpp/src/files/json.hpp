#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

/// JSON of unknown origin, read as Python's `json` reads it: the same texts are taken, refused with the same words.
///
/// That is also why it is no library's parser: Python takes NaN and Infinity, keeps the order of members and the last
/// of equal ones, tells integers from floats, and has integers of any size.
namespace trtprune::files {

/// An integer outside of 64 bits, as its digits with their sign.
struct BigInteger {
    std::string digits;
};

/// A value.
class Json {
  public:
    using List = std::vector<Json>;
    /// Members in the order of the text.
    using Object = std::vector<std::pair<std::string, Json>>;
    using Value = std::variant<std::nullptr_t, bool, std::int64_t, BigInteger, double, std::string, List, Object>;

    Json() = default;
    explicit Json(Value value) : value_(std::move(value)) {}

    /// The value as `T`, one of those of `Value`; nullptr if it is of another type.
    template <class T>
    const T* get() const {
        return std::get_if<T>(&value_);
    }

    /// The member of an object; nullptr if there is none, or the value is no object.
    const Json* member(std::string_view name) const;

    /// The name of the value's type in Python: `NoneType`, `bool`, `int`, `float`, `str`, `list` or `dict`.
    const char* type() const;

    /// The same value for nlohmann::json; an integer outside of 64 bits becomes a float.
    nlohmann::json plain() const;

  private:
    Value value_ = nullptr;
};

/// A text that is no JSON; the message is Python's.
class JsonError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// The largest number of lists and objects inside one another.
constexpr std::size_t max_nesting = 200;

/// The JSON value of a text.
///
/// \param text  UTF-8.
/// \throws JsonError  for a text that is no JSON, is nested more than `max_nesting` deep, or is not UTF-8, or a value
///                    that cannot be printed: a number of more than 4300 digits, a lone surrogate.
Json parse_json(std::string_view text);

}  // namespace trtprune::files
