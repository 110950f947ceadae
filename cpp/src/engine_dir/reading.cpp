#include "engine_dir/reading.hpp"

#include <sys/stat.h>

#include <map>
#include <set>
#include <string_view>
#include <trtprune/error.hpp>

#include "arguments.hpp"
#include "engine_dir/checking.hpp"
#include "engine_dir/digests.hpp"
#include "engine_dir/fields.hpp"
#include "engine_dir/graphs.hpp"
#include "engine_dir/paths.hpp"
#include "files/json.hpp"
#include "files/printable.hpp"
#include "files/reading.hpp"

namespace trtprune::engine_dir {

namespace {

constexpr std::size_t max_config_bytes = 16'000'000;
constexpr const char* again = "build the directory again";

// The version of the schema, if it is this one's; a float of the same value is refused later, by its type.
void check_schema(const files::Json& data, const std::string& path) {
    const files::Json* given = data.member("schema_version");
    const std::string reads = std::to_string(schema_version);
    const auto* number = given == nullptr ? nullptr : given->get<std::int64_t>();
    const auto* big = given == nullptr ? nullptr : given->get<files::BigInteger>();
    const auto* real = given == nullptr ? nullptr : given->get<double>();
    if ((number != nullptr && *number > schema_version) || (big != nullptr && big->digits[0] != '-')) {
        const std::string version = number != nullptr ? std::to_string(*number) : big->digits;
        throw EngineDirError(
            path + ": schema_version " + version + " is newer than this trtprune reads (" + reads + ")",
            "upgrade trtprune, or build the directory again with this version");
    }
    if (number != nullptr && 0 < *number && *number < schema_version) {
        throw EngineDirError(path + ": written by an older trtprune (schema_version " + std::to_string(*number) +
                                 ", this one reads " + reads + ")",
                             "build it again, with force if it is to lie in the same place");
    }
    if (number == nullptr && real != nullptr && *real == static_cast<double>(schema_version)) return;
    if (number == nullptr || *number != schema_version) {
        throw EngineDirError(path + ": schema_version must be " + reads, again);
    }
}

bool is_file(const std::string& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

std::int64_t file_size(const std::string& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 ? status.st_size : 0;
}

bool is_weights(const std::string& name) {
    return name.rfind(std::string(weights_folder) + "/", 0) == 0;
}

bool is_large(const std::string& name) {
    return is_weights(name) || name.rfind("engines/", 0) == 0;
}

// The paths of all files by name; each lies inside, is listed, and is there.
std::map<std::string, std::string> paths_of(const EngineDir& directory) {
    std::map<std::string, std::string> paths;
    for (const auto& [name, digests] : directory.files) paths[name] = directory.path(name);
    const auto check_listed = [&](const std::string& name) {
        directory.path(name);
        if (paths.count(name) == 0) {
            throw EngineDirError(
                join_path(directory.root, config_name) + ": " + name + " is used but not listed in files",
                "build it again");
        }
    };
    for (const ComponentInfo& component : directory.components) {
        check_listed(component.onnx);
        if (component.engine) check_listed(*component.engine);
    }
    for (const auto& [name, digests] : directory.files) {
        if (!is_file(paths[name])) {
            throw EngineDirError(paths[name] + ": missing", "copy the whole directory, or build it again");
        }
    }
    return paths;
}

std::string digest_of_kind(std::string_view digest, const std::string& path) {
    const std::string_view kind = digest.substr(0, digest.find(':'));
    if (kind == "sha256-header-size") return digest_weights(path);
    return kind == "sha256-head-size" ? digest_head(path) : digest_file(path);
}

void check_digest(std::string_view digest, const std::string& path) {
    std::string found;
    try {
        found = digest_of_kind(digest, path);
    } catch (const files::ReadError& error) {
        throw EngineDirError(path + ": cannot be read: " + error.what(), "check the file's permissions");
    }
    if (found != digest) {
        throw EngineDirError(path + ": its content is not what was built (digest differs)",
                             "copy the directory again, or build it again with force");
    }
}

// Refuses weights of a graph in files that config.json does not list, because those are not checked.
void check_locations(const EngineDir& directory, const std::map<std::string, std::string>& paths) {
    for (const ComponentInfo& component : directory.components) {
        const std::string path = directory.path(component.onnx);
        const std::string plain = plain_path(component.onnx);
        const std::size_t slash = plain.rfind('/');
        const std::string folder = slash == plain.npos ? "." : plain.substr(0, slash);
        for (const std::string& location : weight_locations(path)) {
            if (paths.count(join_path(folder, location)) > 0) continue;
            throw EngineDirError(path + ": takes weights from " + files::quoted(location, 200) + ", which " +
                                     config_name + " does not list",
                                 "build it again; do not run it where you do not know its author");
        }
    }
}

}  // namespace

EngineDir parse_config(const std::string& text, const std::string& root) {
    const std::string path = join_path(root, config_name);
    files::Json data;
    try {
        data = files::parse_json(text);
    } catch (const files::JsonError& error) {
        throw EngineDirError(path + ": cannot be read: " + error.what(), again);
    }
    check_schema(data, path);
    EngineDir directory;
    directory.root = root;
    try {
        decode(data, Where("config"), directory);
    } catch (const DecodeError& error) {
        throw EngineDirError(path + ": " + error.text(), again);
    }
    if (const std::optional<std::string> wrong = wrong_values(directory)) {
        throw EngineDirError(path + ": " + *wrong, again);
    }
    return directory;
}

EngineDir read_config(const std::string& root) {
    const std::string path = join_path(root, config_name);
    std::optional<std::string> text;
    try {
        text = files::read_bounded(path, max_config_bytes);
    } catch (const files::ReadError& error) {
        throw EngineDirError(path + ": cannot be read: " + error.what(), again);
    }
    if (!text) {
        throw EngineDirError(root + ": not an engine directory, " + config_name + " is missing",
                             "give the directory that trtprune build wrote; a build that was cut off leaves none");
    }
    return parse_config(*text, root);
}

std::vector<Check> check_files(const EngineDir& directory, const std::string& verify) {
    if (verify != "auto" && verify != "none" && verify != "fast" && verify != "full") {
        throw EngineDirError(arguments::arg("verify", verify) + ": unknown", "one of auto, none, fast, full");
    }
    const std::map<std::string, std::string> paths = paths_of(directory);
    if (verify == "none") return {};
    bool fast = verify == "fast";
    if (verify == "auto") {
        std::int64_t total = 0;
        for (const auto& [name, path] : paths) total += is_large(name) ? file_size(path) : 0;
        fast = total > full_check_bytes;
    }
    std::vector<Check> later;
    for (const auto& [name, recorded] : directory.files) {
        const std::vector<std::string_view> digests = files::words(recorded);
        // A large file has its cheap digest first; the fast check stops there.
        for (const std::string_view digest : digests) {
            const bool whole = digest.rfind("sha256:", 0) == 0;
            if (fast && whole && digests.size() > 1 && is_large(name)) continue;
            if (whole && is_weights(name)) {
                later.push_back([digest = std::string(digest), path = paths.at(name)] { check_digest(digest, path); });
            } else {
                check_digest(digest, paths.at(name));
            }
        }
    }
    check_locations(directory, paths);
    return later;
}

}  // namespace trtprune::engine_dir
