#include "text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <trtprune/error.hpp>

#include "text/detokenizer.hpp"

using trtprune::text::Detokenizer;
using trtprune::text::Tokenizer;
using Ids = std::vector<std::int64_t>;

namespace {

/// Byte fallback with a few merges; the ids of bytes follow those of texts.
nlohmann::json small() {
    nlohmann::json vocab = {{"<unk>", 0}, {"a", 1}, {"b", 2}, {"ab", 3}, {"aba", 4}, {"\u2581", 5}};
    char name[8];
    for (int byte = 0; byte < 256; ++byte) {
        std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
        vocab[name] = 6 + byte;
    }
    return {{"added_tokens", nlohmann::json::array()},
            {"normalizer", {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}},
            {"pre_tokenizer", nullptr},
            {"post_processor", nullptr},
            {"decoder",
             {{"type", "Sequence"},
              {"decoders",
               {{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
                {{"type", "ByteFallback"}},
                {{"type", "Fuse"}}}}}},
            {"model",
             {{"type", "BPE"},
              {"unk_token", "<unk>"},
              {"byte_fallback", true},
              {"vocab", vocab},
              {"merges", {"a b", "ab a"}}}}};
}

std::string message(const nlohmann::json& file) {
    try {
        Tokenizer::from_json(file.dump());
    } catch (const trtprune::EngineDirError& error) {
        return error.message();
    }
    return "";
}

}  // namespace

TEST_CASE("words are merged by rank, other characters are bytes") {
    const Tokenizer tokenizer = Tokenizer::from_json(small().dump());
    const auto encoding = tokenizer.encode("abab a\u00e9");
    CHECK(encoding.ids == Ids{3, 3, 5, 1, 6 + 0xC3, 6 + 0xA9});
    CHECK(encoding.offsets[3] == std::pair<std::int64_t, std::int64_t>(5, 6));
    CHECK(encoding.offsets[5] == std::pair<std::int64_t, std::int64_t>(6, 7));
    CHECK(tokenizer.decode(encoding.ids) == "abab a\u00e9");
    CHECK(tokenizer.decode({-1, 1, 1LL << 40}) == "a");
    CHECK(tokenizer.byte_ids().size() == 256);
    CHECK_THROWS_AS(tokenizer.encode("\xff"), trtprune::InputError);
}

TEST_CASE("one word of a megabyte is tokenised in seconds") {
    const Tokenizer tokenizer = Tokenizer::from_json(small().dump());
    std::string text;
    while (text.size() < 1000000) text += "ab";
    const auto begin = std::chrono::steady_clock::now();
    CHECK(tokenizer.encode(text).ids.size() == 500000);
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
}

TEST_CASE("pieces never cut a character, nor a stop string") {
    const Tokenizer tokenizer = Tokenizer::from_json(small().dump());
    Detokenizer detokenizer(tokenizer, {"b a"});
    CHECK(detokenizer.add(1) == "a");
    CHECK(detokenizer.add(6 + 0xC3).empty());
    CHECK(detokenizer.add(6 + 0xA9).empty());
    CHECK(detokenizer.add(1) ==
          "\u00e9"
          "a");
    CHECK(detokenizer.add(2).empty());
    CHECK(detokenizer.add(5).empty());
    CHECK(detokenizer.add(2) == "b ");
    CHECK(detokenizer.text() ==
          "a\u00e9"
          "ab b");
    CHECK(detokenizer.add(5).empty());
    CHECK(detokenizer.add(1).empty());
    CHECK(detokenizer.stopped());
    CHECK(detokenizer.finish().empty());
    CHECK_THROWS_AS(Detokenizer(tokenizer, {""}), trtprune::InputError);
}

TEST_CASE("a file cannot take any memory or time") {
    nlohmann::json file = small();
    const nlohmann::json grow = {
        {"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(60, 'a')}};
    file["normalizer"] = {{"type", "Sequence"}, {"normalizers", nlohmann::json::array({grow, grow, grow, grow, grow})}};
    CHECK_THROWS_AS(Tokenizer::from_json(file.dump()).encode("aaaa"), trtprune::InputError);
    file["normalizer"]["normalizers"] = std::vector<nlohmann::json>(100, grow);
    CHECK(message(file) == "tokenizer.json: its normalizer has too many parts for the C++ runtime");
    file = small();
    file["post_processor"] = {
        {"type", "TemplateProcessing"},
        {"single", std::vector<nlohmann::json>(5000, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}})},
        {"pair", nlohmann::json::array()},
        {"special_tokens", nlohmann::json::object()}};
    CHECK_THROWS_AS(Tokenizer::from_json(file.dump()).encode(std::string(20000, 'b')), trtprune::InputError);
}

TEST_CASE("what is not supported is refused by name") {
    nlohmann::json file = small();
    file["normalizer"] = {{"type", "Nmt"}};
    CHECK(message(file) == "tokenizer.json: its normalizer: 'Nmt' is not supported by the C++ runtime");
    file = small();
    file["model"]["type"] = "Unigram";
    CHECK(message(file) == "tokenizer.json: its model: 'Unigram' is not supported by the C++ runtime");
    file = small();
    file["model"]["dropout"] = 0.1;
    CHECK(message(file).find("dropout") != std::string::npos);
    file = small();
    file["model"]["vocab"]["z"] = 1;
    CHECK(message(file) == "tokenizer.json: two tokens have the id 1");
    file = small();
    file["model"]["merges"].push_back("a z");
    CHECK(message(file) == "tokenizer.json cannot be read: Token `z` out of vocabulary");
    file = small();
    nlohmann::json nested = {{"type", "NFC"}};
    for (int i = 0; i < 100; ++i) nested = {{"type", "Sequence"}, {"normalizers", {nested}}};
    file["normalizer"] = nested;
    CHECK_FALSE(message(file).empty());
    CHECK_THROWS_AS(Tokenizer::from_json(std::string(100001, '{')), trtprune::EngineDirError);
    CHECK_THROWS_AS(Tokenizer::from_json("[]"), trtprune::EngineDirError);
    CHECK_THROWS_AS(Tokenizer::from_json("{\"model\": {\"vocab\": {\"a\": 1}, \"merges\": [[\"a\"]]}}"),
                    trtprune::EngineDirError);
}
