#include "engine_dir/paths.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <optional>
#include <trtprune/error.hpp>
#include <vector>

#include "engine_dir/schema.hpp"
#include "files/printable.hpp"

namespace trtprune::engine_dir {

namespace {

constexpr int most_links = 100;

std::vector<std::string> parts_of(std::string_view path) {
    std::vector<std::string> parts;
    while (!path.empty()) {
        const std::size_t end = std::min(path.find('/'), path.size());
        const std::string_view part = path.substr(0, end);
        if (!part.empty() && part != ".") parts.emplace_back(part);
        path.remove_prefix(std::min(end + 1, path.size()));
    }
    return parts;
}

std::optional<std::string> read_link(const std::string& path) {
    std::string target(PATH_MAX, '\0');
    const ssize_t size = ::readlink(path.c_str(), target.data(), target.size());
    if (size < 0) return std::nullopt;
    target.resize(static_cast<std::size_t>(size));
    return target;
}

// The absolute path without symbolic links, whether or not it exists; not set for a circle of links.
std::optional<std::string> resolve(const std::string& path) {
    std::string start = path;
    if (path.empty() || path[0] != '/') {
        char buffer[PATH_MAX];
        if (::getcwd(buffer, sizeof buffer) == nullptr) return std::nullopt;
        start = std::string(buffer) + "/" + path;
    }
    std::vector<std::string> rest = parts_of(start);
    std::reverse(rest.begin(), rest.end());
    std::string resolved;  // without a slash at the end; empty: the root
    int links = 0;
    while (!rest.empty()) {
        const std::string part = rest.back();
        rest.pop_back();
        if (part == "..") {
            resolved.resize(resolved.empty() ? 0 : resolved.rfind('/'));
            continue;
        }
        const std::string next = resolved + "/" + part;
        const std::optional<std::string> target = read_link(next);
        if (!target) {
            resolved = next;
            continue;
        }
        if (++links > most_links) return std::nullopt;
        if (!target->empty() && (*target)[0] == '/') resolved.clear();
        std::vector<std::string> inner = parts_of(*target);
        rest.insert(rest.end(), inner.rbegin(), inner.rend());
    }
    return resolved.empty() ? "/" : resolved;
}

std::string parent_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    if (slash == path.npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

std::string name_of(const std::string& path) {
    return path.substr(path.rfind('/') + 1);
}

bool starts_with(const std::string& text, const std::string& prefix) {
    return text.rfind(prefix, 0) == 0;
}

// The hub cache's folder with the files of a resolved directory; empty if that is not in such a cache.
std::string hub_blobs(const std::string& base) {
    const std::string snapshots = parent_of(base);
    const std::string repository = parent_of(snapshots);
    if (name_of(snapshots) != "snapshots" || !starts_with(name_of(repository), "models--")) return {};
    const std::string blobs = repository + "/blobs";
    return read_link(blobs) ? std::string() : blobs;
}

bool is_path_of_directory(const std::string& relative) {
    if (relative.empty() || relative[0] == '/' ||
        relative.find_first_of(std::string_view("\\\0", 2)) != relative.npos) {
        return false;
    }
    const char first = static_cast<char>(relative[0] | 0x20);
    if (relative.size() > 1 && relative[1] == ':' && first >= 'a' && first <= 'z') return false;  // a drive
    const std::vector<std::string> parts = parts_of(relative);
    return std::find(parts.begin(), parts.end(), "..") == parts.end();
}

// Whether a path can be looked up at all: a missing file can, one with a name that is too long cannot.
bool can_be_looked_up(const std::string& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 || errno == ENOENT || errno == ENOTDIR || errno == EBADF;
}

bool stays_inside(const std::string& root, const std::string& path) {
    const std::optional<std::string> real = resolve(path);
    const std::optional<std::string> base = resolve(root);
    if (!real || !base || !can_be_looked_up(path)) return false;
    const std::string folder = *base == "/" ? "/" : *base + "/";
    if (*real == *base || starts_with(*real, folder)) return true;
    const std::string blobs = hub_blobs(*base);
    return !blobs.empty() && parent_of(*real) == blobs;
}

}  // namespace

std::string plain_path(std::string_view path) {
    // Two slashes in front, and no third, are kept: POSIX lets them have a meaning.
    const std::string front = path.substr(0, 1) != "/"                                  ? ""
                              : path.substr(0, 2) == "//" && path.substr(0, 3) != "///" ? "//"
                                                                                        : "/";
    std::string plain;
    for (const std::string& part : parts_of(path)) plain += (plain.empty() ? "" : "/") + part;
    plain = front + plain;
    return plain.empty() ? "." : plain;
}

std::string join_path(const std::string& folder, std::string_view relative) {
    if (relative.substr(0, 1) == "/") return plain_path(relative);
    return plain_path(folder + "/" + std::string(relative));
}

std::string inside(const std::string& root, const std::string& relative) {
    if (is_path_of_directory(relative)) {
        std::string path = join_path(root, relative);
        if (stays_inside(root, path)) return path;
    }
    throw EngineDirError(join_path(root, config_name) + ": path " + files::quoted(relative, 200) +
                             " leaves the engine directory or is no path",
                         "build it again");
}

}  // namespace trtprune::engine_dir
