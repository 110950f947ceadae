// Answers questions.  A line in: {"directory": …, "load": {…}, "calls": [{"kind": "generate", "batch" or "chat", …},
// …]}; a line out: a list with the results of each call, or its error.  Images are files of plain RGB bytes, behind
// width and height: [path, width, height].  With "rounds", memory and descriptors after each of so many loads.

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <trtprune/vlm.hpp>

using nlohmann::json;
using trtprune::GenerateOptions;
using trtprune::Image;
using trtprune::Vlm;

namespace {

template <typename T>
void read(const json& object, const char* name, std::optional<T>& target) {
    if (object.contains(name) && !object.at(name).is_null()) target = object.at(name).get<T>();
}

GenerateOptions options_of(const json& call) {
    GenerateOptions options;
    const json object = call.value("options", json::object());
    read(object, "keep", options.keep);
    read(object, "keep_ratio", options.keep_ratio);
    read(object, "max_new_tokens", options.max_new_tokens);
    read(object, "temperature", options.temperature);
    read(object, "top_k", options.top_k);
    read(object, "top_p", options.top_p);
    read(object, "repetition_penalty", options.repetition_penalty);
    read(object, "seed", options.seed);
    read(object, "stop", options.stop);
    read(object, "system", options.system);
    options.ignore_eos = object.value("ignore_eos", false);
    options.raw_prompt = object.value("raw_prompt", false);
    return options;
}

// The same file is the same image.
std::vector<Image> images_of(const json& list, std::map<std::string, Image>& known) {
    std::vector<Image> images;
    for (const json& item : list) {
        const std::string path = item.at(0);
        auto found = known.find(path);
        if (found == known.end()) {
            std::ifstream file(path, std::ios::binary);
            const std::string bytes{std::istreambuf_iterator<char>(file), {}};
            const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
            found = known.emplace(path, Image::from_rgb(data, item.at(1), item.at(2))).first;
        }
        images.push_back(found->second);
    }
    return images;
}

json error_of(const trtprune::Error& error) {
    return {{"error", error.message()}, {"hint", error.hint()}, {"code", static_cast<int>(error.code())}};
}

// A callback that collects the pieces, and ends the answer after `limit` of them.
trtprune::TextCallback collecting(json& pieces, const json& call) {
    if (!call.contains("pieces")) return {};
    return [&pieces, limit = call.at("pieces").get<std::size_t>()](std::string_view piece) {
        pieces.push_back(piece);
        return pieces.size() < limit;
    };
}

json result_of(const trtprune::Result& result, const json& pieces) {
    json object = json::parse(result.to_json());
    if (!pieces.empty()) object["pieces"] = pieces;
    return object;
}

json batch(Vlm& vlm, const json& call, std::map<std::string, Image>& known) {
    std::vector<trtprune::Request> requests;
    for (const json& row : call.at("requests")) {
        trtprune::Request request;
        request.images = images_of(row.at("images"), known);
        request.prompt = row.at("prompt");
        read(row, "keep", request.keep);
        read(row, "keep_ratio", request.keep_ratio);
        read(row, "system", request.system);
        read(row, "max_new_tokens", request.max_new_tokens);
        read(row, "seed", request.seed);
        request.raw_prompt = row.value("raw_prompt", false);
        requests.push_back(std::move(request));
    }
    json results = json::array();
    for (const auto& result : vlm.generate_batch(requests, options_of(call))) {
        results.push_back(result_of(result, json::array()));
    }
    return results;
}

json chat(Vlm& vlm, const json& call, std::map<std::string, Image>& known) {
    std::optional<std::string> system;
    read(call, "system", system);
    auto conversation = vlm.chat(images_of(call.at("images"), known), system);
    json results = json::array();
    for (const json& turn : call.at("turns")) {
        json pieces = json::array();
        try {
            const auto result = conversation.ask(turn.at("prompt"), options_of(turn), collecting(pieces, turn),
                                                 turn.value("repick", true));
            results.push_back(result_of(result, pieces));
        } catch (const trtprune::Error& error) {
            results.push_back(error_of(error));
        }
    }
    return results;
}

json generate(Vlm& vlm, const json& call, std::map<std::string, Image>& known) {
    json pieces = json::array();
    const auto result = vlm.generate(images_of(call.at("images"), known), call.at("prompt"), options_of(call),
                                     collecting(pieces, call));
    return result_of(result, pieces);
}

json run(Vlm& vlm, const json& call, std::map<std::string, Image>& known) {
    try {
        const std::string kind = call.at("kind");
        return kind == "batch"  ? batch(vlm, call, known)
               : kind == "chat" ? chat(vlm, call, known)
                                : generate(vlm, call, known);
    } catch (const trtprune::Error& error) {
        return error_of(error);
    }
}

json answer(const json& request) {
    trtprune::LoadOptions load;
    const json options = request.value("load", json::object());
    load.provider = options.value("provider", "");
    load.threads = options.value("threads", 1);
    load.verify = options.value("verify", "auto");
    load.library = options.value("library", "");
    load.provider_options = options.value("provider_options", std::map<std::string, std::string>());
    Vlm vlm = Vlm::load(request.at("directory"), load);
    std::map<std::string, Image> known;
    json results = json::array();
    for (const json& call : request.at("calls")) results.push_back(run(vlm, call, known));
    return results;
}

// Loads and asks so many times; resident memory in KiB and open descriptors after each round.
json rounds(const json& request) {
    json found = json::array();
    for (std::int64_t i = 0; i < request.at("rounds").get<std::int64_t>(); ++i) {
        answer(request);
        std::ifstream memory("/proc/self/statm");
        std::int64_t pages = 0;
        memory >> pages >> pages;
        const auto descriptors = std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
        found.push_back({pages * 4, descriptors});
    }
    return found;
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        json result;
        try {
            const json request = json::parse(line);
            result = request.contains("rounds") ? rounds(request) : answer(request);
        } catch (const trtprune::Error& error) {
            result = error_of(error);
        }
        std::puts(result.dump().c_str());
    }
}
