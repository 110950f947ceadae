#include <algorithm>
#include <string>
#include <trtprune/error.hpp>
#include <utility>

#include "engine_dir/schema.hpp"
#include "files/reading.hpp"
#include "text/prompt.hpp"

namespace trtprune::text {

namespace {

constexpr std::size_t largest_file = 64000000;

std::string read_tokenizer(const engine_dir::EngineDir& directory) {
    const std::string name = "tokenizer.json";
    const auto listed = [&](const auto& file) { return file.first == name; };
    if (std::none_of(directory.files.begin(), directory.files.end(), listed))
        throw EngineDirError("tokenizer.json is missing", "add the checkpoint's tokenizer.json and build again");
    const std::string path = directory.path(name);
    std::string reason = "missing";
    try {
        if (auto text = files::read_bounded(path, largest_file)) return std::move(*text);
    } catch (const files::ReadError& error) {
        reason = error.what();
    }
    throw EngineDirError(path + ": cannot be read: " + reason, "build the directory again");
}

}  // namespace

PromptEncoder::PromptEncoder(const engine_dir::EngineDir& directory)
    : PromptEncoder(read_tokenizer(directory), directory.text, directory.model.image_token,
                    directory.model.image_token_id, directory.model.video_token) {}

}  // namespace trtprune::text
