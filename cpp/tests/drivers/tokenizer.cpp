// Commands on standard input, answers on standard output, one JSON object a line:
//   {"open": "tokenizer.json"}                  {"size": …, "skipped_ids": […], "byte_ids": […], "seconds": …}
//   {"add": [{"content": …, …}]}                {}
//   {"split_special": true}                     {}
//   {"encode": "text", "special": true}         {"ids": […], "offsets": [[start, end], …]}
//   {"encode_hex": "ff"}                        as encode, of bytes
//   {"decode": [1, 2], "skip": true}            {"text": …}
//   {"stream": [1, 2], "stop": ["x"]}           {"pieces": […], "text": …, "stopped": …}
// An expected failure is {"error": …, "hint": …}.
#include "text/tokenizer.hpp"

#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <trtprune/error.hpp>

#include "text/detokenizer.hpp"

namespace {

using nlohmann::json;
using trtprune::text::Tokenizer;

std::string from_hex(const std::string& digits) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
        bytes.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
    return bytes;
}

json open(std::optional<Tokenizer>& tokenizer, const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const auto begin = std::chrono::steady_clock::now();
    tokenizer.emplace(Tokenizer::from_json(text));
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    return {{"size", tokenizer->size()},
            {"skipped_ids", tokenizer->skipped_ids()},
            {"byte_ids", tokenizer->byte_ids()},
            {"seconds", time.count()}};
}

json add(Tokenizer& tokenizer, const json& entries) {
    std::vector<trtprune::text::AddedToken> tokens;
    for (const json& entry : entries)
        tokens.push_back({entry.at("content"), entry.at("single_word"), entry.at("lstrip"), entry.at("rstrip"),
                          entry.at("normalized"), entry.at("special")});
    tokenizer.add_tokens(tokens);
    return json::object();
}

json encode(const Tokenizer& tokenizer, const std::string& text, bool special) {
    const auto encoding = tokenizer.encode(text, special);
    return {{"ids", encoding.ids}, {"offsets", encoding.offsets}};
}

json stream(const Tokenizer& tokenizer, const json& command) {
    trtprune::text::Detokenizer detokenizer(tokenizer, command.at("stop").get<std::vector<std::string>>());
    json pieces = json::array();
    for (const auto& id : command.at("stream")) pieces.push_back(detokenizer.add(id.get<std::int64_t>()));
    pieces.push_back(detokenizer.finish());
    return {{"pieces", pieces}, {"text", detokenizer.text()}, {"stopped", detokenizer.stopped()}};
}

json answer(std::optional<Tokenizer>& tokenizer, const json& command) {
    if (command.contains("open")) return open(tokenizer, command["open"]);
    if (command.contains("add")) return add(*tokenizer, command["add"]);
    if (command.contains("split_special")) {
        tokenizer->set_encode_special_tokens(command["split_special"]);
        return json::object();
    }
    if (command.contains("encode")) return encode(*tokenizer, command["encode"], command.value("special", true));
    if (command.contains("encode_hex")) return encode(*tokenizer, from_hex(command["encode_hex"]), true);
    if (command.contains("decode")) {
        const auto ids = command["decode"].get<std::vector<std::int64_t>>();
        return {{"text", tokenizer->decode(ids, command.value("skip", true))}};
    }
    return stream(*tokenizer, command);
}

}  // namespace

int main() {
    std::optional<Tokenizer> tokenizer;
    std::string line;
    while (std::getline(std::cin, line)) {
        json result;
        try {
            result = answer(tokenizer, json::parse(line));
        } catch (const trtprune::Error& error) {
            result = {{"error", error.message()}, {"hint", error.hint()}, {"code", static_cast<int>(error.code())}};
        }
        std::cout << result.dump() << std::endl;
    }
}
