#include "text/added_tokens.hpp"

#include <algorithm>
#include <trtprune/error.hpp>
#include <utility>

#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

constexpr std::uint64_t steps_per_byte = 100, steps_at_least = 1000000;

bool same(const AddedToken& a, const AddedToken& b) {
    return a.content == b.content && a.single_word == b.single_word && a.lstrip == b.lstrip && a.rstrip == b.rstrip &&
           a.normalized == b.normalized && a.special == b.special;
}

/// Whether no word goes on at the ends of [start, end).
bool is_word(std::string_view text, std::size_t start, std::size_t end) {
    return (start == 0 || !is_regex_word(char_at(text, before(text, start)))) &&
           (end == text.size() || !is_regex_word(char_at(text, end)));
}

}  // namespace

TextFinder::TextFinder(std::vector<std::pair<std::string, std::uint32_t>> texts) : texts_(std::move(texts)) {
    std::sort(texts_.begin(), texts_.end());
    rows_.assign(256, {0, 0});
    for (std::size_t i = 0; i < texts_.size(); ++i) {
        auto& [first, last] = rows_[static_cast<unsigned char>(texts_[i].first[0])];
        if (last == 0) first = i;
        last = i + 1;
    }
}

std::vector<TextFinder::Match> TextFinder::find_all(std::string_view text) const {
    std::vector<Match> found;
    if (texts_.empty()) return found;
    std::uint64_t left = steps_at_least + steps_per_byte * text.size();
    for (std::size_t place = 0; place < text.size();) {
        auto [first, last] = rows_[static_cast<unsigned char>(text[place])];
        std::optional<Match> longest;
        for (std::size_t length = 1; first < last; ++length) {
            if (left-- == 0)
                throw InputError("the prompt cannot be tokenised: the search for added tokens takes too many steps",
                                 "the checkpoint's tokenizer.json is at fault, if other prompts fail, too");
            // Of texts that begin alike the shortest is the first.
            const auto& [content, id] = texts_[first];
            if (content.size() == length) {
                longest = Match{place, place + length, id};
                if (++first == last) break;
            }
            if (place + length == text.size()) break;
            const auto next = static_cast<unsigned char>(text[place + length]);
            const auto begin = texts_.begin();
            const auto below = [&](const auto& row, unsigned char byte) {
                return static_cast<unsigned char>(row.first[length]) < byte;
            };
            const auto above = [&](unsigned char byte, const auto& row) {
                return byte < static_cast<unsigned char>(row.first[length]);
            };
            const auto from = begin + static_cast<std::ptrdiff_t>(first),
                       to = begin + static_cast<std::ptrdiff_t>(last);
            first = static_cast<std::size_t>(std::lower_bound(from, to, next, below) - begin);
            last = static_cast<std::size_t>(std::upper_bound(from, to, next, above) - begin);
        }
        if (longest) found.push_back(*longest);
        place = longest ? longest->end : place + 1;
    }
    return found;
}

void AddedTokens::add(const std::vector<AddedToken>& tokens, const Vocabulary& vocabulary, const Normalizer* normalizer,
                      const std::string& name) {
    const auto size = static_cast<std::uint32_t>(vocabulary.size());
    std::uint32_t next = size;
    if (!by_id_.empty() && (by_id_.rbegin()->first >= size || size == 0)) next = by_id_.rbegin()->first + 1;
    for (const AddedToken& token : tokens) {
        if (token.content.empty()) continue;
        const auto known = ids_.find(token.content);
        if (known != ids_.end() && same(by_id_[known->second], token)) continue;
        std::uint32_t number = next;
        if (known != ids_.end())
            number = known->second;
        else if (const auto id = vocabulary.id(token.content))
            number = *id;
        else
            ++next;
        if (token.normalized && normalizer != nullptr) {
            AlignedText text(token.content);
            normalizer->apply(text);
            if (text.text() != token.content) normalized_[number] = text.text();
        }
        ids_[token.content] = number;
        if (token.special) special_.insert(token.content);
        by_id_[number] = token;
    }
    skipped_.clear();
    for (const auto& [id, token] : by_id_) {
        // The library compares texts, and a special token stays special whatever its flag becomes.
        if (special_.count(*text(id)) != 0) skipped_.insert(id);
    }
    build_finders(name);
}

void AddedTokens::replace(const std::vector<AddedTokenInfo>& tokens, const Vocabulary& vocabulary,
                          const std::string& name) {
    *this = AddedTokens();
    for (const AddedTokenInfo& token : tokens) {
        const auto wrong = [&](const std::string& why) {
            throw EngineDirError(
                "config.json: text.tokenizer.added_tokens: '" + token.content + "' " + why + " " + name,
                "build the directory again");
        };
        if (token.id < 0 || token.id > 0xFFFFFFFF || token.content.empty()) wrong("is no token of");
        const auto id = static_cast<std::uint32_t>(token.id);
        const auto known = vocabulary.id(token.content);
        const auto other = vocabulary.text(id);
        if ((known && *known != id) || (other && *other != token.content)) wrong("has another id in");
        if (!ids_.emplace(token.content, id).second || by_id_.count(id) != 0) wrong("is twice beside");
        by_id_[id] = {token.content, token.single_word, token.lstrip, token.rstrip, token.normalized, token.special};
        if (token.decoded != token.content) normalized_[id] = token.decoded;
        if (token.special) special_.insert(token.content);
        if (token.skipped) skipped_.insert(token.id);
    }
    build_finders(name);
}

void AddedTokens::build_finders(const std::string& name) {
    std::vector<std::pair<std::string, std::uint32_t>> plain, normalized;
    std::unordered_set<std::string> seen;
    for (const auto& [id, token] : by_id_) {
        if (!token.normalized) {
            plain.emplace_back(token.content, id);
            continue;
        }
        const auto changed = normalized_.find(id);
        const std::string& text = changed == normalized_.end() ? token.content : changed->second;
        // The library then takes any of them, another one in each process.
        if (text.empty() || !seen.insert(text).second)
            throw EngineDirError(name + ": the added token '" + token.content + "' is " +
                                     (text.empty() ? "nothing" : "another one, too,") + " to its normalizer",
                                 "give it \"normalized\": false in the checkpoint's " + name);
        normalized.emplace_back(text, id);
    }
    plain_finder_ = TextFinder(std::move(plain));
    normalized_finder_ = TextFinder(std::move(normalized));
}

std::vector<Piece> AddedTokens::extract(std::string_view text, const Normalizer* normalizer, bool split_special) const {
    std::vector<Piece> pieces;
    pieces.push_back({AlignedText(text), std::nullopt});
    split(pieces, plain_finder_, split_special);
    if (normalizer != nullptr) {
        for (Piece& piece : pieces) {
            if (!piece.id) normalizer->apply(piece.text);
        }
    }
    split(pieces, normalized_finder_, split_special);
    return pieces;
}

void AddedTokens::split(std::vector<Piece>& pieces, const TextFinder& finder, bool split_special) const {
    std::vector<Piece> found;
    for (Piece& piece : pieces) {
        if (piece.id) {
            found.push_back(std::move(piece));
            continue;
        }
        for (Piece& part : cut(piece.text, finder, split_special)) {
            if (!part.text.empty()) found.push_back(std::move(part));
        }
    }
    pieces = std::move(found);
}

std::vector<Piece> AddedTokens::cut(const AlignedText& text, const TextFinder& finder, bool split_special) const {
    const std::string& whole = text.text();
    std::vector<Piece> found;
    std::size_t last = 0;
    for (const auto& [first, behind, id] : finder.find_all(whole)) {
        const AddedToken& token = by_id_.at(id);
        if (split_special && special_.count(token.content) != 0) continue;
        std::size_t start = first, end = behind;
        if (token.single_word && !is_word(whole, start, end)) continue;
        if (token.lstrip) {
            std::size_t ink = start;
            while (ink > 0 && is_regex_space(char_at(whole, before(whole, ink)))) ink = before(whole, ink);
            start = std::max(ink, last);  // white space of the token before belongs to that one
        }
        if (token.rstrip) {
            while (end < whole.size() && is_regex_space(char_at(whole, end))) end += char_length(whole[end]);
        }
        if (last < start) found.push_back({text.slice(last, start), std::nullopt});
        if (start < end) found.push_back({text.slice(start, end), id});
        last = end;
    }
    if (last != whole.size()) found.push_back({text.slice(last, whole.size()), std::nullopt});
    return found;
}

std::optional<std::uint32_t> AddedTokens::id(std::string_view content) const {
    const auto found = ids_.find(std::string(content));
    return found == ids_.end() ? std::nullopt : std::optional<std::uint32_t>(found->second);
}

std::optional<std::string> AddedTokens::text(std::uint32_t id) const {
    const auto token = by_id_.find(id);
    if (token == by_id_.end()) return std::nullopt;
    const auto changed = normalized_.find(id);
    return changed == normalized_.end() ? token->second.content : changed->second;
}

}  // namespace trtprune::text
