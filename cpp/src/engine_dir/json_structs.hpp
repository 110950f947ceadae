#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "files/json.hpp"
#include "files/text_error.hpp"

/// JSON → structs, strictly; the twin of `trtprune.engine_dir.json_dataclasses`.
///
/// An unknown type, a missing or an extra field is an error naming the field: nothing is coerced, and nothing is filled
/// in silently.  A struct is described once, by a function `fields(visitor, value)` that calls `visitor(name, member)`
/// for each member in the order of the Python dataclass, `visitor(name, member, with_default)` for one with a default,
/// and `visitor(name, member, Choices{…})` for a text that is one of a few.
namespace trtprune::engine_dir {

/// A JSON value without the form of the struct; the message names the field.
class DecodeError : public files::TextError {
  public:
    using TextError::TextError;
};

/// A mark for a member that may be missing.
struct WithDefault {};
constexpr WithDefault with_default{};

/// The texts that a member may be.
struct Choices {
    std::initializer_list<const char*> texts;
};

/// The place of a value in the file; written out only for an error.
class Where {
  public:
    explicit Where(std::string_view name) : name_(name) {}
    Where(const Where& parent, std::string_view name) : parent_(&parent), name_(name) {}
    Where(const Where& parent, std::size_t index) : parent_(&parent), index_(index) {}

    std::string text() const {
        if (parent_ == nullptr) return std::string(name_);
        const std::string before = parent_->text();
        return index_ ? before + "[" + std::to_string(*index_) + "]" : before + "." + std::string(name_);
    }

    [[noreturn]] void fail(const std::string& what) const { throw DecodeError(text() + " " + what); }

  private:
    const Where* parent_ = nullptr;
    std::string_view name_;
    std::optional<std::size_t> index_;
};

using files::Json;

// Faults of a number that come before those of its type, as Python looks for them in this order.
inline void check_number(const Json& value, const Where& where) {
    if (value.get<files::BigInteger>() != nullptr) where.fail("is a number out of range");
    const double* number = value.get<double>();
    if (number != nullptr && !std::isfinite(*number)) where.fail("must be a finite number");
}

[[noreturn]] inline void fail_type(const Json& value, const Where& where, const char* type) {
    where.fail(std::string("must be of type ") + type + ", not " + value.type());
}

inline void decode(const Json& value, const Where& where, std::int64_t& member) {
    if (value.get<bool>() != nullptr) where.fail("must be an integer, not a boolean");
    check_number(value, where);
    if (value.get<std::int64_t>() == nullptr) fail_type(value, where, "int");
    member = *value.get<std::int64_t>();
}

inline void decode(const Json& value, const Where& where, bool& member) {
    check_number(value, where);
    if (value.get<bool>() == nullptr) fail_type(value, where, "bool");
    member = *value.get<bool>();
}

inline void decode(const Json& value, const Where& where, double& member) {
    check_number(value, where);
    if (const auto* whole = value.get<std::int64_t>()) {
        member = static_cast<double>(*whole);
        return;
    }
    if (value.get<double>() == nullptr) fail_type(value, where, "float");
    member = *value.get<double>();
}

inline void decode(const Json& value, const Where& where, std::string& member) {
    check_number(value, where);
    if (value.get<std::string>() == nullptr) fail_type(value, where, "str");
    member = *value.get<std::string>();
}

inline const Json::List& list_of(const Json& value, const Where& where) {
    if (value.get<Json::List>() == nullptr) where.fail("must be a list");
    return *value.get<Json::List>();
}

inline const Json::Object& object_of(const Json& value, const Where& where) {
    if (value.get<Json::Object>() == nullptr) where.fail("must be an object");
    return *value.get<Json::Object>();
}

/// An object of any content, as it is.
inline void decode(const Json& value, const Where& where, nlohmann::json& member) {
    object_of(value, where);
    member = value.plain();
}

template <class T>
std::enable_if_t<std::is_class_v<T>> decode(const Json& value, const Where& where, T& member);
template <class T>
void decode(const Json& value, const Where& where, std::optional<T>& member);
template <class T>
void decode(const Json& value, const Where& where, std::vector<T>& member);
template <class T, std::size_t N>
void decode(const Json& value, const Where& where, std::array<T, N>& member);
template <class A, class B>
void decode(const Json& value, const Where& where, std::pair<A, B>& member);
template <class T>
void decode(const Json& value, const Where& where, std::map<std::string, T>& member);
template <class T>
void decode(const Json& value, const Where& where, std::vector<std::pair<std::string, T>>& member);
template <class... T>
void decode(const Json& value, const Where& where, std::variant<T...>& member);

template <class T>
void decode(const Json& value, const Where& where, std::optional<T>& member) {
    if (value.get<std::nullptr_t>() != nullptr) {
        member.reset();
        return;
    }
    decode(value, where, member.emplace());
}

template <class T>
void decode(const Json& value, const Where& where, std::vector<T>& member) {
    const Json::List& list = list_of(value, where);
    member.resize(list.size());
    for (std::size_t i = 0; i < list.size(); ++i) decode(list[i], Where(where, i), member[i]);
}

inline const Json::List& list_of_size(const Json& value, const Where& where, std::size_t size) {
    const Json::List& list = list_of(value, where);
    if (list.size() != size) {
        where.fail("must have " + std::to_string(size) + " entries, not " + std::to_string(list.size()));
    }
    return list;
}

template <class T, std::size_t N>
void decode(const Json& value, const Where& where, std::array<T, N>& member) {
    const Json::List& list = list_of_size(value, where, N);
    for (std::size_t i = 0; i < N; ++i) decode(list[i], Where(where, i), member[i]);
}

template <class A, class B>
void decode(const Json& value, const Where& where, std::pair<A, B>& member) {
    const Json::List& list = list_of_size(value, where, 2);
    decode(list[0], Where(where, 0), member.first);
    decode(list[1], Where(where, 1), member.second);
}

template <class T>
void decode(const Json& value, const Where& where, std::map<std::string, T>& member) {
    for (const auto& [name, item] : object_of(value, where)) decode(item, Where(where, name), member[name]);
}

/// An object whose members keep their order.
template <class T>
void decode(const Json& value, const Where& where, std::vector<std::pair<std::string, T>>& member) {
    const Json::Object& object = object_of(value, where);
    member.resize(object.size());
    for (std::size_t i = 0; i < object.size(); ++i) {
        member[i].first = object[i].first;
        decode(object[i].second, Where(where, object[i].first), member[i].second);
    }
}

template <class T>
bool has_type(const Json& value) {
    return value.get<T>() != nullptr;
}

/// The first of the types that the value has; the fault that is told is that of the first type.
template <class... T>
void decode(const Json& value, const Where& where, std::variant<T...>& member) {
    const auto attempt = [&](auto type) {
        if (!has_type<decltype(type)>(value)) return false;
        decode(value, where, type);
        member = std::move(type);
        return true;
    };
    if ((attempt(T{}) || ...)) return;
    std::variant_alternative_t<0, std::variant<T...>> first{};
    decode(value, where, first);
}

// The names of a struct's members.
struct NameCollector {
    std::unordered_set<std::string_view> names;

    template <class T>
    void operator()(const char* name, T&, WithDefault = {}) {
        names.insert(name);
    }

    void operator()(const char* name, std::string&, const Choices&) { names.insert(name); }
};

// Reads the members of a struct in their order.
struct MemberReader {
    const Json& value;
    const Where& where;

    template <class T>
    void operator()(const char* name, T& member) {
        const Json* given = value.member(name);
        if (given == nullptr) throw DecodeError(Where(where, name).text() + " is missing");
        decode(*given, Where(where, name), member);
    }

    template <class T>
    void operator()(const char* name, T& member, WithDefault) {
        if (const Json* given = value.member(name)) decode(*given, Where(where, name), member);
    }

    void operator()(const char* name, std::string& member, const Choices& choices) {
        const Json* given = value.member(name);
        if (given == nullptr) throw DecodeError(Where(where, name).text() + " is missing");
        const auto* text = given->get<std::string>();
        std::string list;
        for (const char* choice : choices.texts) {
            if (text != nullptr && *text == choice) {
                member = choice;
                return;
            }
            list += (list.empty() ? "" : ", ") + std::string(choice);
        }
        Where(where, name).fail("must be one of " + list);
    }
};

template <class T>
std::enable_if_t<std::is_class_v<T>> decode(const Json& value, const Where& where, T& member) {
    const Json::Object& object = object_of(value, where);
    NameCollector known;
    fields(known, member);
    for (const auto& [name, item] : object) {
        if (known.names.count(name) == 0) throw DecodeError(Where(where, name).text() + " is not a known field");
    }
    MemberReader reader{value, where};
    fields(reader, member);
}

}  // namespace trtprune::engine_dir
