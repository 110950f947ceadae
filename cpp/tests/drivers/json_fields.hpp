#pragma once

#include "engine_dir/fields.hpp"

/// Structs of the schema as JSON, for comparisons with `EngineDir.to_json` of Python.
namespace drivers {

using nlohmann::json;

// Declared before any is defined, as each may be needed by each.
template <class T>
std::enable_if_t<std::is_class_v<T>, json> to_json(T& value);
template <class T>
json to_json(std::optional<T>& value);
template <class T>
json to_json(std::vector<T>& list);
template <class T, std::size_t N>
json to_json(std::array<T, N>& list);
template <class A, class B>
json to_json(std::pair<A, B>& pair);
template <class T>
json to_json(std::map<std::string, T>& map);
template <class T>
json to_json(std::vector<std::pair<std::string, T>>& members);
template <class... T>
json to_json(std::variant<T...>& value);

inline json to_json(std::int64_t& value) {
    return value;
}
inline json to_json(bool& value) {
    return value;
}
inline json to_json(double& value) {
    return value;
}
inline json to_json(std::string& value) {
    return value;
}
inline json to_json(json& value) {
    return value;
}

template <class T>
json to_json(std::optional<T>& value) {
    return value ? to_json(*value) : json();
}

template <class List>
json list_to_json(List& list) {
    json array = json::array();
    for (auto& item : list) array.push_back(to_json(item));
    return array;
}

template <class T>
json to_json(std::vector<T>& list) {
    return list_to_json(list);
}

template <class T, std::size_t N>
json to_json(std::array<T, N>& list) {
    return list_to_json(list);
}

template <class A, class B>
json to_json(std::pair<A, B>& pair) {
    json array = json::array();
    array.push_back(to_json(pair.first));
    array.push_back(to_json(pair.second));
    return array;
}

template <class T>
json to_json(std::map<std::string, T>& map) {
    json object = json::object();
    for (auto& [name, value] : map) object[name] = to_json(value);
    return object;
}

template <class T>
json to_json(std::vector<std::pair<std::string, T>>& members) {
    json object = json::object();
    for (auto& [name, value] : members) object[name] = to_json(value);
    return object;
}

template <class... T>
json to_json(std::variant<T...>& value) {
    return std::visit([](auto& inner) { return to_json(inner); }, value);
}

struct FieldWriter {
    json object = json::object();

    template <class T>
    void operator()(const char* name, T& member, trtprune::engine_dir::WithDefault = {}) {
        object[name] = to_json(member);
    }

    void operator()(const char* name, std::string& member, const trtprune::engine_dir::Choices&) {
        object[name] = member;
    }
};

template <class T>
std::enable_if_t<std::is_class_v<T>, json> to_json(T& value) {
    FieldWriter writer;
    fields(writer, value);
    return writer.object;
}

}  // namespace drivers
