#include <algorithm>
#include <fstream>
#include <string>
#include <trtprune/error.hpp>

#include "engine_dir/schema.hpp"
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
    std::ifstream file(path, std::ios::binary);
    std::string text(largest_file + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(std::max<std::streamsize>(file.gcount(), 0)));
    if (text.empty() || text.size() > largest_file)
        throw EngineDirError(path + ": cannot be read", "build the directory again");
    return text;
}

}  // namespace

PromptEncoder::PromptEncoder(const engine_dir::EngineDir& directory)
    : PromptEncoder(read_tokenizer(directory), directory.text, directory.model.image_token,
                    directory.model.image_token_id) {}

}  // namespace trtprune::text
