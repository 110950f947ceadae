#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace trtprune::text {

/// An object of a tokenizer.json, whose members are read with checks.
class Fields {
  public:
    /// \param value  The object.
    /// \param where  The file and the member, for messages.
    /// \throws EngineDirError  if it is no object.
    Fields(const nlohmann::json& value, std::string where);

    // Members; without a default they must be there.  \throws EngineDirError  if one is missing or of another kind.
    std::string text(const char* name) const;
    bool flag(const char* name) const;
    bool flag(const char* name, bool standard) const;
    std::uint32_t number(const char* name) const;
    char32_t character(const char* name) const;
    std::vector<nlohmann::json> list(const char* name) const;
    const nlohmann::json& member(const char* name) const;
    std::optional<std::string> optional_text(const char* name) const;  ///< none if it is missing or null
    bool has(const char* name) const;                                  ///< whether it is there and not null

    const std::string& where() const noexcept { return where_; }

    /// Says that a part is not supported, by its name.
    [[noreturn]] void refuse(const std::string& what) const;
    /// Says that a member is wrong.
    [[noreturn]] void wrong(const std::string& why) const;

  private:
    const nlohmann::json& value_;
    std::string where_;
};

/// Deepest nesting of a part in another.
constexpr int deepest_part = 16;

}  // namespace trtprune::text
