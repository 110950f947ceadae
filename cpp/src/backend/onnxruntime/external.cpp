#include "backend/onnxruntime/external.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <set>
#include <string_view>
#include <system_error>
#include <trtprune/error.hpp>

#include "engine_dir/protobuf.hpp"

namespace trtprune::backend::onnxruntime {

namespace fs = std::filesystem;

namespace {

constexpr const char* weights = "weights";
// ModelProto.graph, GraphProto.initializer, TensorProto.external_data: from a model to where its tensors are.
constexpr std::array<std::uint32_t, 3> to_entries{7, 5, 13};
constexpr std::uint32_t key_field = 1;
constexpr std::uint32_t value_field = 2;
constexpr int depth = 16;

// What becomes of a message's text.
using Change = std::function<std::string(std::string_view)>;

std::string varint(std::size_t value) {
    std::string bytes;
    for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7F) | 0x80);
    return bytes + static_cast<char>(value);
}

// A message with the contents of all fields of a number changed; every other byte stays.
std::string with_fields(std::string_view message, std::uint32_t number, const Change& change) {
    std::string result;
    std::size_t done = 0;
    engine_dir::WireReader reader(message, depth);
    while (const auto field = reader.next()) {
        if (field->number != number || !field->content) continue;
        const auto begin = static_cast<std::size_t>(field->content->data() - message.data());
        const std::string head = static_cast<char>(number << 3 | 2) + varint(field->content->size());
        const bool plain = begin >= done + head.size() && message.substr(begin - head.size(), head.size()) == head;
        if (!plain) throw engine_dir::WireError();
        const std::string content = change(*field->content);
        result += message.substr(done, begin - head.size() - done);
        result += head[0] + varint(content.size()) + content;
        done = begin + field->content->size();
    }
    return result.append(message.substr(done));
}

// A model with each location of a tensor changed.
std::string with_locations(std::string_view message, const Change& change, std::size_t level = 0) {
    if (level < to_entries.size()) {
        return with_fields(message, to_entries[level],
                           [&](std::string_view part) { return with_locations(part, change, level + 1); });
    }
    bool location = false;
    engine_dir::WireReader reader(message, depth);
    while (const auto field = reader.next())
        location = location || (field->number == key_field && field->content == "location");
    return location ? with_fields(message, value_field, change) : std::string(message);
}

// Whether weights of the graphs in a folder are symbolic links.
bool has_links(const fs::path& folder) {
    std::error_code none;
    if (fs::is_symlink(folder / weights, none)) return true;
    for (fs::directory_iterator entry(folder / weights, none), end; entry != end; entry.increment(none)) {
        if (entry->is_symlink(none)) return true;
    }
    return false;
}

fs::path common_parent(const std::set<fs::path>& files) {
    fs::path common = files.begin()->parent_path();
    for (const fs::path& file : files) {
        const fs::path parent = file.parent_path();
        fs::path shared;
        for (auto a = common.begin(), b = parent.begin(); a != common.end() && b != parent.end() && *a == *b;
             ++a, ++b) {
            shared /= *a;
        }
        common = shared;
    }
    return common;
}

}  // namespace

std::pair<std::string, fs::path> located(std::string graph, const fs::path& folder) {
    try {
        const fs::path place = fs::canonical(folder);
        if (!has_links(place)) return {std::move(graph), place};
        std::set<fs::path> files;
        with_locations(graph, [&](std::string_view name) {
            files.insert(fs::canonical(place / fs::path(name)));
            return std::string(name);
        });
        if (files.empty()) return {std::move(graph), place};
        const fs::path common = common_parent(files);
        std::string changed = with_locations(graph, [&](std::string_view name) {
            return fs::canonical(place / fs::path(name)).lexically_relative(common).generic_string();
        });
        return {std::move(changed), common};
    } catch (const fs::filesystem_error& error) {
        throw EngineDirError(error.path1().string() + ": cannot be read: " + error.code().message(), "build it again");
    } catch (const engine_dir::WireError&) {
        throw EngineDirError(folder.string() + ": a graph cannot be read", "build it again");
    }
}

}  // namespace trtprune::backend::onnxruntime
