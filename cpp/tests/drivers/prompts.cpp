// Commands on standard input, answers on standard output, one JSON object a line:
//   {"tokenizer": {…}, "text": {…}, "image_token": "<image>", "image_token_id": 5}     {}
//   {"turns": [["user", "text", 1]], "raw": false}
//       {"rendered": …, "ids": […], "image_positions": […], "question": […], "text": …, "spans": {…}, "decoded": …}
//   {"stream": [1, 2], "stop": ["x"]}            {"pieces": […], "final": …, "text": …, "stopped": …}
// An expected failure is {"error": …, "hint": …, "code": …}.
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <trtprune/error.hpp>
#include <vector>

#include "text/prompt.hpp"
#include "text/utf8.hpp"

namespace {

using namespace trtprune::text;
using nlohmann::json;

template <typename Value>
std::optional<Value> optional(const json& value) {
    return value.is_null() ? std::nullopt : std::optional<Value>(value.get<Value>());
}

std::vector<PieceInfo> pieces(const json& values) {
    std::vector<PieceInfo> found;
    for (const json& value : values)
        found.push_back({value.at("kind"), value.at("value"), value.at("left"), value.at("right")});
    return found;
}

std::vector<Rule> rules(const json& values) {
    std::vector<Rule> found;
    for (const json& value : values)
        found.push_back({optional<bool>(value.at("system")), optional<bool>(value.at("first")),
                         optional<bool>(value.at("last")), optional<bool>(value.at("images")),
                         pieces(value.at("pieces"))});
    return found;
}

TemplateInfo template_info(const json& value) {
    TemplateInfo info{pieces(value.at("begin")),    pieces(value.at("system")), rules(value.at("user")),
                      rules(value.at("assistant")), rules(value.at("end")),     {},
                      value.at("own_images")};
    for (const json& row : value.at("refusals"))
        info.refusals.push_back({optional<bool>(row.at("system")), optional<bool>(row.at("several")), row.at("error"),
                                 row.at("message"), row.at("hint")});
    return info;
}

TextInfo text_info(const json& value) {
    TextInfo info;
    const json& tokenizer = value.at("tokenizer");
    for (const json& token : tokenizer.at("added_tokens"))
        info.tokenizer.added_tokens.push_back({token.at("id"), token.at("content"), token.at("single_word"),
                                               token.at("lstrip"), token.at("rstrip"), token.at("normalized"),
                                               token.at("special"), token.at("skipped"), token.at("decoded")});
    info.tokenizer.encode_special_tokens = tokenizer.at("encode_special_tokens");
    info.tokenizer.before = optional<std::vector<std::int64_t>>(tokenizer.at("before"));
    info.tokenizer.after = optional<std::vector<std::int64_t>>(tokenizer.at("after"));
    info.tokenizer.bos = optional<std::string>(tokenizer.at("bos"));
    if (!value.at("template").is_null()) info.chat_template = template_info(value.at("template"));
    info.reason = optional<std::string>(value.at("reason"));
    return info;
}

json encode(const PromptEncoder& encoder, const std::optional<TemplateInfo>& chat_template, const json& command) {
    std::vector<Turn> turns;
    for (const json& turn : command.at("turns")) turns.push_back({turn.at(0), turn.at(1), turn.at(2)});
    const bool raw = command.at("raw");
    const auto markers = command.value("markers", Markers());
    const Prompt prompt = encoder.encode(turns, raw, command.contains("markers") ? &markers : nullptr);
    std::string rendered = turns.back().text;
    if (!raw) {
        rendered.clear();
        for (const char32_t point : render(*chat_template, turns).text) append(rendered, point);
    }
    json spans;
    for (const char* name : {"question", "after_image", "all"}) spans[name] = prompt.span(name);
    return {{"rendered", rendered},
            {"ids", prompt.ids},
            {"image_positions", prompt.image_positions},
            {"marker_positions", prompt.markers},
            {"question", prompt.question},
            {"text", prompt.text},
            {"spans", spans},
            {"decoded", encoder.decode(prompt.ids)}};
}

json stream(const PromptEncoder& encoder, const json& command) {
    Detokenizer detokenizer = encoder.detokenizer(command.at("stop").get<std::vector<std::string>>());
    json found = json::array();
    for (const json& id : command.at("stream")) found.push_back(detokenizer.add(id));
    const std::string final = detokenizer.finish();
    return {{"pieces", found}, {"final", final}, {"text", detokenizer.text()}, {"stopped", detokenizer.stopped()}};
}

}  // namespace

int main() {
    std::optional<PromptEncoder> encoder;
    std::optional<TemplateInfo> chat_template;
    std::string line;
    while (std::getline(std::cin, line)) {
        const json command = json::parse(line);
        json answer = json::object();
        try {
            if (command.contains("tokenizer")) {
                TextInfo info = text_info(command.at("text"));
                chat_template = info.chat_template;
                encoder.emplace(command.at("tokenizer").dump(), std::move(info), command.at("image_token"),
                                command.at("image_token_id").get<std::int64_t>());
            } else if (command.contains("turns")) {
                answer = encode(*encoder, chat_template, command);
            } else {
                answer = stream(*encoder, command);
            }
        } catch (const trtprune::Error& error) {
            answer = {{"error", error.message()}, {"hint", error.hint()}, {"code", static_cast<int>(error.code())}};
        }
        std::cout << answer.dump() << std::endl;
    }
}
