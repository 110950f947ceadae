#pragma once

#include <cstdint>
#include <string>
#include <string_view>

/// Arguments in messages, and checks of their ranges; the twin of `trtprune.arguments`.
namespace trtprune::arguments {

/// An argument in the message or hint of an error, as Python spells it with its value: `keep=64`, `stop='a'`.
std::string arg(std::string_view name, std::int64_t value);
std::string arg(std::string_view name, std::uint64_t value);
std::string arg(std::string_view name, int value);
std::string arg(std::string_view name, double value);
std::string arg(std::string_view name, bool value);
std::string arg(std::string_view name, std::string_view value);
std::string arg(std::string_view name, const char* value);
std::string arg(std::string_view name, const std::string& value);

/// A whole number of at least `low`.
///
/// \param name   The argument, as Python spells it.
/// \param value  The caller's value.
/// \param low    The smallest valid value.
/// \param what   Text behind the limit in the message, e.g. " (off)".
/// \throws InputError  naming the argument.
std::int64_t whole(std::string_view name, std::int64_t value, std::int64_t low, std::string_view what = {});

/// A finite number.
///
/// \throws InputError  naming the argument.
double real(std::string_view name, double value);

}  // namespace trtprune::arguments
