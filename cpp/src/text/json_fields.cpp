#include "text/json_fields.hpp"

#include <limits>
#include <trtprune/error.hpp>
#include <utility>

#include "text/utf8.hpp"

namespace trtprune::text {

Fields::Fields(const nlohmann::json& value, std::string where) : value_(value), where_(std::move(where)) {
    if (!value.is_object()) wrong("it is no object");
}

const nlohmann::json& Fields::member(const char* name) const {
    const auto found = value_.find(name);
    if (found == value_.end()) wrong(std::string("'") + name + "' is missing");
    return *found;
}

bool Fields::has(const char* name) const {
    const auto found = value_.find(name);
    return found != value_.end() && !found->is_null();
}

std::string Fields::text(const char* name) const {
    const auto& value = member(name);
    if (!value.is_string()) wrong(std::string("'") + name + "' is no text");
    return value.get<std::string>();
}

std::optional<std::string> Fields::optional_text(const char* name) const {
    return has(name) ? std::optional<std::string>(text(name)) : std::nullopt;
}

bool Fields::flag(const char* name) const {
    const auto& value = member(name);
    if (!value.is_boolean()) wrong(std::string("'") + name + "' is neither true nor false");
    return value.get<bool>();
}

bool Fields::flag(const char* name, bool standard) const {
    return has(name) ? flag(name) : standard;
}

std::uint32_t Fields::number(const char* name) const {
    const auto& value = member(name);
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > std::numeric_limits<std::uint32_t>::max())
        wrong(std::string("'") + name + "' is no whole number of 32 bits");
    return value.get<std::uint32_t>();
}

char32_t Fields::character(const char* name) const {
    const std::string value = text(name);
    if (value.empty() || char_length(value[0]) != value.size()) wrong(std::string("'") + name + "' is no character");
    return char_at(value, 0);
}

std::vector<nlohmann::json> Fields::list(const char* name) const {
    const auto& value = member(name);
    if (!value.is_array()) wrong(std::string("'") + name + "' is no list");
    return value.get<std::vector<nlohmann::json>>();
}

void Fields::refuse(const std::string& what) const {
    throw EngineDirError(where_ + ": " + what + " is not supported by the C++ runtime",
                         "run the directory from Python");
}

void Fields::wrong(const std::string& why) const {
    throw EngineDirError(where_ + " cannot be read: " + why,
                         "correct the checkpoint's tokenizer.json, or save the tokenizer again with save_pretrained, "
                         "and build again");
}

}  // namespace trtprune::text
