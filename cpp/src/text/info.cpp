#include "text/info.hpp"

#include <algorithm>
#include <array>
#include <string_view>
#include <unordered_set>
#include <utility>

namespace trtprune::text {

namespace {

using Fault = std::optional<std::string>;
using Pieces = std::vector<PieceInfo>;

constexpr std::size_t most_tokens = 1 << 20;
constexpr std::size_t most_pieces = 1 << 12;
constexpr std::size_t most_characters = 1 << 20;
constexpr std::int64_t largest_id = 1 << 26;

bool is_id(std::int64_t id) {
    return id >= 0 && id < largest_id;
}

std::size_t characters(std::string_view text) {
    return static_cast<std::size_t>(std::count_if(
        text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80; }));
}

Fault wrong_tokenizer(const TokenizerInfo& tokenizer) {
    const std::vector<AddedTokenInfo>& tokens = tokenizer.added_tokens;
    const bool ascending = std::adjacent_find(tokens.begin(), tokens.end(), [](const auto& a, const auto& b) {
                               return a.id >= b.id;
                           }) == tokens.end();
    const bool ids = std::all_of(tokens.begin(), tokens.end(), [](const auto& token) { return is_id(token.id); });
    if (tokens.size() > most_tokens || !ascending || !ids) {
        return "tokenizer.added_tokens must have ascending ids from 0";
    }
    std::unordered_set<std::string_view> contents;
    for (const AddedTokenInfo& token : tokens) contents.insert(token.content);
    if (contents.size() < tokens.size() || contents.count("") > 0) {
        return "tokenizer.added_tokens must have texts of their own";
    }
    if (tokenizer.before.has_value() != tokenizer.after.has_value()) {
        return "tokenizer.before and tokenizer.after belong together";
    }
    std::vector<std::int64_t> around = tokenizer.before.value_or(std::vector<std::int64_t>());
    const std::vector<std::int64_t> after = tokenizer.after.value_or(std::vector<std::int64_t>());
    around.insert(around.end(), after.begin(), after.end());
    if (around.size() > most_pieces || !std::all_of(around.begin(), around.end(), is_id)) {
        return "tokenizer.before and tokenizer.after: a token id is at least 0";
    }
    return {};
}

// Every list of pieces, with the name of its place.
std::vector<std::pair<std::string, const Pieces*>> places_of(const TemplateInfo& chat_template) {
    std::vector<std::pair<std::string, const Pieces*>> places = {{"begin", &chat_template.begin},
                                                                 {"system", &chat_template.system}};
    const std::pair<const char*, const std::vector<Rule>*> rules[] = {
        {"user", &chat_template.user}, {"assistant", &chat_template.assistant}, {"end", &chat_template.end}};
    for (const auto& [name, list] : rules) {
        for (std::size_t i = 0; i < list->size(); ++i) {
            places.emplace_back(std::string(name) + "[" + std::to_string(i) + "].pieces", &(*list)[i].pieces);
        }
    }
    return places;
}

Fault wrong_pieces(const std::string& name, const Pieces& pieces) {
    int depth = 0;
    for (const PieceInfo& piece : pieces) {
        depth += piece.kind == "open" ? 1 : piece.kind == "close" ? -1 : 0;
        if (depth < 0) break;
    }
    if (depth != 0) return name + ": an open piece without its close, or the other way round";
    const bool turn = std::any_of(pieces.begin(), pieces.end(), [](const PieceInfo& piece) {
        return piece.kind == "images" || piece.kind == "text";
    });
    if (turn && (name == "begin" || name == "system")) {
        return name + ": images and text belong to the turns of user and assistant";
    }
    return {};
}

// Whether there is a rule for each of the sixteen kinds of turns.
bool is_complete(const std::vector<Rule>& rules) {
    for (unsigned turn = 0; turn < 16; ++turn) {
        const auto fits = [&](const std::optional<bool>& wanted, unsigned bit) {
            return !wanted || *wanted == (((turn >> bit) & 1U) != 0);
        };
        const auto holds = [&](const Rule& rule) {
            return fits(rule.system, 0) && fits(rule.first, 1) && fits(rule.last, 2) && fits(rule.images, 3);
        };
        if (std::none_of(rules.begin(), rules.end(), holds)) return false;
    }
    return true;
}

Fault wrong_template(const TemplateInfo& chat_template) {
    const auto places = places_of(chat_template);
    std::size_t pieces = 0;
    std::size_t size = 0;
    for (const auto& [name, list] : places) {
        pieces += list->size();
        for (const PieceInfo& piece : *list) {
            size += characters(piece.value) + characters(piece.left) + characters(piece.right);
        }
    }
    if (pieces > most_pieces || size > most_characters || chat_template.refusals.size() > most_pieces) {
        return "user: more than 4096 pieces, or 1,048,576 characters in them";
    }
    for (const auto& [name, list] : places) {
        if (Fault fault = wrong_pieces(name, *list)) return fault;
    }
    const std::pair<const char*, const std::vector<Rule>*> rules[] = {
        {"user", &chat_template.user}, {"assistant", &chat_template.assistant}, {"end", &chat_template.end}};
    for (const auto& [name, list] : rules) {
        if (!is_complete(*list)) return std::string(name) + ": there are turns that no rule holds for";
    }
    return {};
}

}  // namespace

std::optional<std::string> TextInfo::wrong() const {
    if (Fault fault = wrong_tokenizer(tokenizer)) return fault;
    if (chat_template.has_value() == reason.has_value()) {
        return "reason belongs to a template that is not written as pieces, and to no other";
    }
    if (!chat_template) return {};
    Fault fault = wrong_template(*chat_template);
    if (fault) fault = "template." + *fault;
    return fault;
}

}  // namespace trtprune::text
