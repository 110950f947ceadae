#include "engine_dir/opening.hpp"

#include <sys/stat.h>

#include <trtprune/error.hpp>

#include "engine_dir/paths.hpp"
#include "engine_dir/reading.hpp"

namespace trtprune::engine_dir {

EngineDir open_engine_dir(const std::string& path, const std::string& verify) {
    const std::string root = plain_path(path);
    struct stat status {};
    // A name with a zero byte in it would be read as a shorter one.
    const bool is_name = root.find('\0') == root.npos;
    if (!is_name || ::stat(root.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
        throw EngineDirError(root + ": no such engine directory",
                             "make one: trtprune build --model demo --keep 64 -o OUT");
    }
    EngineDir directory = read_config(root);
    check_files(directory, verify);
    return directory;
}

}  // namespace trtprune::engine_dir
