#include "arguments.hpp"

#include <cmath>
#include <trtprune/error.hpp>

#include "files/printable.hpp"
#include "files/shown.hpp"

namespace trtprune::arguments {

namespace {

constexpr std::size_t longest_value = 160;

// The argument with a value's text, which is cut.
std::string with_value(std::string_view name, const std::string& value) {
    std::string text = std::string(name) + "=";
    const std::string_view shortened = files::cut(value, longest_value);
    if (shortened.size() == value.size()) return text + value;
    return text + std::string(files::cut(value, longest_value - 1)) + "…";
}

}  // namespace

std::string arg(std::string_view name, std::int64_t value) {
    return with_value(name, std::to_string(value));
}
std::string arg(std::string_view name, std::uint64_t value) {
    return with_value(name, std::to_string(value));
}
std::string arg(std::string_view name, int value) {
    return with_value(name, std::to_string(value));
}
std::string arg(std::string_view name, double value) {
    return with_value(name, files::float_repr(value));
}
std::string arg(std::string_view name, bool value) {
    return with_value(name, value ? "True" : "False");
}
std::string arg(std::string_view name, std::string_view value) {
    return with_value(name, files::quoted(value, longest_value + 1));
}
std::string arg(std::string_view name, const char* value) {
    return arg(name, std::string_view(value));
}
std::string arg(std::string_view name, const std::string& value) {
    return arg(name, std::string_view(value));
}

std::int64_t whole(std::string_view name, std::int64_t value, std::int64_t low, std::string_view what) {
    if (value < low) {
        throw InputError(arg(name, value) + ": must be at least " + std::to_string(low) + std::string(what));
    }
    return value;
}

double real(std::string_view name, double value) {
    if (!std::isfinite(value)) throw InputError(arg(name, value) + ": must be a number");
    return value;
}

}  // namespace trtprune::arguments
