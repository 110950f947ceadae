#include "engine_dir/graphs.hpp"

#include <cstdio>
#include <optional>
#include <string_view>
#include <trtprune/error.hpp>

#include "engine_dir/protobuf.hpp"
#include "files/reading.hpp"
#include "files/utf8.hpp"

namespace trtprune::engine_dir {

namespace {

// Messages inside one another, as protobuf's own readers limit them.
constexpr int max_depth = 100;
constexpr std::size_t max_graph_bytes = 0x7FFFFFFF;

// The messages of onnx.proto (onnx 1.23), with those that hold no other message and no packed numbers left out.
enum class Message {
    model,
    graph,
    node,
    attribute,
    tensor,
    entry,
    sparse_tensor,
    value_info,
    type,
    type_with_shape,
    type_of_element,
    map_type,
    shape,
    annotation,
    training,
    function,
    node_devices,
    sharding,
    index_groups,
    sharded_dim,
    other,
};

// A field with messages inside, or with packed numbers.
struct Field {
    Message owner;
    std::uint32_t number;
    Message inner;
    int packed = -1;  // bytes of a packed number, 0 for varints; -1: a message
};

constexpr Message packed_field = Message::other;

constexpr Field fields[] = {
    {Message::model, 7, Message::graph},
    {Message::model, 8, Message::other},
    {Message::model, 14, Message::entry},
    {Message::model, 20, Message::training},
    {Message::model, 25, Message::function},
    {Message::model, 26, Message::other},
    {Message::graph, 1, Message::node},
    {Message::graph, 5, Message::tensor},
    {Message::graph, 11, Message::value_info},
    {Message::graph, 12, Message::value_info},
    {Message::graph, 13, Message::value_info},
    {Message::graph, 14, Message::annotation},
    {Message::graph, 15, Message::sparse_tensor},
    {Message::graph, 16, Message::entry},
    {Message::node, 5, Message::attribute},
    {Message::node, 9, Message::entry},
    {Message::node, 10, Message::node_devices},
    {Message::attribute, 5, Message::tensor},
    {Message::attribute, 6, Message::graph},
    {Message::attribute, 7, packed_field, 4},
    {Message::attribute, 8, packed_field, 0},
    {Message::attribute, 10, Message::tensor},
    {Message::attribute, 11, Message::graph},
    {Message::attribute, 14, Message::type},
    {Message::attribute, 15, Message::type},
    {Message::attribute, 22, Message::sparse_tensor},
    {Message::attribute, 23, Message::sparse_tensor},
    {Message::tensor, 1, packed_field, 0},
    {Message::tensor, 3, Message::other},
    {Message::tensor, 4, packed_field, 4},
    {Message::tensor, 5, packed_field, 0},
    {Message::tensor, 7, packed_field, 0},
    {Message::tensor, 10, packed_field, 8},
    {Message::tensor, 11, packed_field, 0},
    {Message::tensor, 13, Message::entry},
    {Message::tensor, 16, Message::entry},
    {Message::sparse_tensor, 1, Message::tensor},
    {Message::sparse_tensor, 2, Message::tensor},
    {Message::sparse_tensor, 3, packed_field, 0},
    {Message::value_info, 2, Message::type},
    {Message::value_info, 4, Message::entry},
    {Message::type, 1, Message::type_with_shape},
    {Message::type, 4, Message::type_of_element},
    {Message::type, 5, Message::map_type},
    {Message::type, 7, Message::other},
    {Message::type, 8, Message::type_with_shape},
    {Message::type, 9, Message::type_of_element},
    {Message::type_with_shape, 2, Message::shape},
    {Message::type_of_element, 1, Message::type},
    {Message::map_type, 2, Message::type},
    {Message::shape, 1, Message::other},
    {Message::annotation, 2, Message::entry},
    {Message::training, 1, Message::graph},
    {Message::training, 2, Message::graph},
    {Message::training, 3, Message::entry},
    {Message::training, 4, Message::entry},
    {Message::function, 7, Message::node},
    {Message::function, 9, Message::other},
    {Message::function, 11, Message::attribute},
    {Message::function, 12, Message::value_info},
    {Message::function, 14, Message::entry},
    {Message::node_devices, 2, Message::sharding},
    {Message::sharding, 2, packed_field, 0},
    {Message::sharding, 3, Message::index_groups},
    {Message::sharding, 4, Message::sharded_dim},
    {Message::index_groups, 2, packed_field, 0},
    {Message::sharded_dim, 2, Message::other},
};

constexpr std::uint32_t external_data = 13;

const Field* find_field(Message owner, std::uint32_t number) {
    for (const Field& field : fields) {
        if (field.owner == owner && field.number == number) return &field;
    }
    return nullptr;
}

// A text of a graph, with the bytes that are not UTF-8 as escapes.
std::string text_of(std::string_view bytes) {
    std::string text;
    while (!bytes.empty()) {
        std::uint32_t code = 0;
        const std::size_t length = files::utf8_sequence(bytes, code);
        if (length > 0) {
            text += bytes.substr(0, length);
        } else {
            char buffer[8];
            std::snprintf(buffer, sizeof buffer, "\\x%02x", static_cast<unsigned>(static_cast<std::uint8_t>(bytes[0])));
            text += buffer;
        }
        bytes.remove_prefix(length > 0 ? length : 1);
    }
    return text;
}

// The file that an entry of external data names.
std::optional<std::string> location_of(std::string_view entry, int depth) {
    std::string_view key;
    std::string_view value;
    WireReader reader(entry, depth);
    while (const std::optional<WireField> field = reader.next()) {
        if (field->number == 1 && field->content) key = *field->content;
        if (field->number == 2 && field->content) value = *field->content;
    }
    if (key != "location") return std::nullopt;
    return text_of(value);
}

// Reads the whole of a message, as one that is broken anywhere is no graph, and gathers the files of its tensors.
void gather_locations(std::string_view bytes, Message message, int depth, std::set<std::string>& locations) {
    if (depth < 0) throw WireError();
    WireReader reader(bytes, depth);
    while (const std::optional<WireField> field = reader.next()) {
        const Field* known = find_field(message, field->number);
        if (known == nullptr || !field->content) continue;
        if (known->packed >= 0) {
            WireReader::check_packed(*field->content, known->packed);
            continue;
        }
        gather_locations(*field->content, known->inner, depth - 1, locations);
        if (message == Message::tensor && field->number == external_data) {
            if (std::optional<std::string> location = location_of(*field->content, depth - 1)) {
                locations.insert(std::move(*location));
            }
        }
    }
}

}  // namespace

std::set<std::string> locations_in(std::string_view model) {
    std::set<std::string> locations;
    gather_locations(model, Message::model, max_depth, locations);
    return locations;
}

std::set<std::string> weight_locations(const std::string& path) {
    std::optional<std::string> bytes;
    try {
        bytes = files::read_bounded(path, max_graph_bytes);
        if (!bytes) throw files::ReadError("No such file or directory");
    } catch (const files::ReadError& error) {
        throw EngineDirError(path + ": cannot be read: " + error.what(), "check the file's permissions");
    }
    try {
        return locations_in(*bytes);
    } catch (const WireError&) {
        throw EngineDirError(path + ": not a readable ONNX graph", "build it again");
    }
}

}  // namespace trtprune::engine_dir
