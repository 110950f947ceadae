#include "engine_dir/opening.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <string_view>
#include <trtprune/error.hpp>
#include <utility>

#include "engine_dir/paths.hpp"

namespace trtprune::engine_dir {

namespace {

// `owner/name`, with `@revision` or not: what Python looks for on the Hugging Face hub.  A text with a second slash, or
// with a dot or tilde in front, is a path.
bool looks_like_repository(std::string_view text) {
    const std::string_view name = text.substr(0, text.find('@'));
    const std::size_t slash = name.find('/');
    if (slash == name.npos || name.find('/', slash + 1) != name.npos) return false;
    const auto is_alphanumeric = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    };
    const auto is_name = [&](std::string_view part) {
        return !part.empty() && is_alphanumeric(part[0]) && std::all_of(part.begin(), part.end(), [&](char c) {
            return is_alphanumeric(c) || c == '_' || c == '.' || c == '-';
        });
    };
    return is_name(name.substr(0, slash)) && is_name(name.substr(slash + 1));
}

}  // namespace

Opening begin_engine_dir(const std::string& path, const std::string& verify) {
    const std::string root = plain_path(path);
    struct stat status {};
    // A name with a zero byte in it would be read as a shorter one.
    const bool is_name = root.find('\0') == root.npos;
    if (!is_name || ::stat(root.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
        const bool missing = is_name && ::lstat(root.c_str(), &status) != 0;
        const char* hint = missing && looks_like_repository(path)
                               ? "this runtime does not download: hf download OWNER/NAME --local-dir OUT"
                               : "make one: trtprune build --model demo --keep 64 -o OUT";
        throw EngineDirError(root + ": no such engine directory", hint);
    }
    Opening opening{read_config(root), {}};
    opening.checks = check_files(opening.directory, verify);
    return opening;
}

EngineDir open_engine_dir(const std::string& path, const std::string& verify) {
    Opening opening = begin_engine_dir(path, verify);
    for (const Check& check : opening.checks) check();
    return std::move(opening.directory);
}

}  // namespace trtprune::engine_dir
