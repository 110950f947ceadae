#include "text/bpe.hpp"

#include <queue>
#include <trtprune/error.hpp>
#include <tuple>

#include "text/utf8.hpp"

namespace trtprune::text {

namespace {

std::string byte_token(unsigned byte) {
    const char* digits = "0123456789ABCDEF";
    return std::string("<0x") + digits[byte >> 4] + digits[byte & 15] + ">";
}

/// A pair that may be joined; of all, the one of the lowest rank is joined first, and of these the first.
struct Candidate {
    std::uint32_t rank;
    std::int32_t place;
    std::uint32_t id;

    bool operator>(const Candidate& other) const { return std::tie(rank, place) > std::tie(other.rank, other.place); }
};

[[noreturn]] void unreadable(const std::string& name, const std::string& why) {
    throw EngineDirError(name + " cannot be read: " + why, "correct the checkpoint's " + name +
                                                               ", or save the tokenizer again with save_pretrained, "
                                                               "and build again");
}

}  // namespace

Bpe::Bpe(BpeSettings settings, Vocabulary vocabulary,
         const std::vector<std::pair<std::string_view, std::string_view>>& merges, const std::string& name)
    : settings_(std::move(settings)), vocabulary_(std::move(vocabulary)), merges_(merges.size()) {
    const std::size_t prefix = settings_.continuing_subword_prefix.size();
    const auto known = [&](std::string_view text) {
        const auto id = vocabulary_.id(text);
        if (!id) unreadable(name, "Token `" + std::string(text) + "` out of vocabulary");
        return *id;
    };
    std::string whole;
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
        const auto& [first, second] = merges[rank];
        const std::uint32_t left = known(first), right = known(second);
        if (second.size() < prefix) unreadable(name, "a merge is shorter than continuing_subword_prefix");
        whole.assign(first);
        whole.append(second.substr(prefix));
        merges_.add(left, right, {static_cast<std::uint32_t>(rank), known(whole)});
    }
    for (unsigned byte = 0; byte < 256; ++byte) bytes_.push_back(vocabulary_.id(byte_token(byte)));
}

std::vector<WordToken> Bpe::tokenize(std::string_view word) const {
    if (word.empty()) return {};
    if (settings_.ignore_merges) {
        if (const auto id = vocabulary_.id(word)) return {{*id, 0, word.size()}};
    }
    std::vector<Symbol> symbols = symbols_of(word);
    merge(symbols);
    std::vector<WordToken> tokens;
    std::size_t place = 0;
    for (const Symbol& symbol : symbols) {
        if (symbol.length == 0) continue;
        tokens.push_back({symbol.id, place, place + symbol.length});
        place += symbol.length;
    }
    return tokens;
}

std::vector<Bpe::Symbol> Bpe::symbols_of(std::string_view word) const {
    std::vector<Symbol> symbols;
    const auto add = [&](std::uint32_t id, std::uint32_t length) {
        const auto place = static_cast<std::int32_t>(symbols.size());
        if (!symbols.empty()) symbols.back().next = place;
        symbols.push_back({id, place - 1, -1, length});
    };
    // Unknown characters wait for the next known one; byte tokens do not release them, as in the library.
    std::optional<std::pair<std::uint32_t, std::uint32_t>> unknown;
    std::string text;
    for (std::size_t i = 0; i < word.size();) {
        const auto length = static_cast<std::uint32_t>(char_length(word[i]));
        text.clear();
        if (i > 0) text += settings_.continuing_subword_prefix;
        text += word.substr(i, length);
        i += length;
        if (i == word.size()) text += settings_.end_of_word_suffix;
        if (const auto id = vocabulary_.id(text)) {
            if (unknown) add(unknown->first, unknown->second);
            unknown.reset();
            add(*id, length);
            continue;
        }
        if (settings_.byte_fallback && add_bytes(text, symbols)) continue;
        if (!settings_.unk_token) continue;
        if (unknown && settings_.fuse_unk) {
            unknown->second += length;
            continue;
        }
        if (unknown) add(unknown->first, unknown->second);
        const auto id = vocabulary_.id(*settings_.unk_token);
        if (!id)
            throw InputError(
                "the prompt cannot be tokenised: Unk token `" + *settings_.unk_token + "` not found in the vocabulary",
                "the checkpoint's tokenizer.json is at fault, if other prompts fail, too");
        unknown.emplace(*id, length);
    }
    if (unknown) add(unknown->first, unknown->second);
    return symbols;
}

bool Bpe::add_bytes(const std::string& text, std::vector<Symbol>& symbols) const {
    for (const char byte : text) {
        if (!bytes_[static_cast<unsigned char>(byte)]) return false;
    }
    for (const char byte : text) {
        const auto place = static_cast<std::int32_t>(symbols.size());
        if (!symbols.empty()) symbols.back().next = place;
        symbols.push_back({*bytes_[static_cast<unsigned char>(byte)], place - 1, -1, 1});
    }
    return true;
}

void Bpe::merge(std::vector<Symbol>& symbols) const {
    std::vector<Candidate> first;
    const auto index = [](std::int32_t place) { return static_cast<std::size_t>(place); };
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
        if (const auto* found = merges_.find(symbols[i].id, symbols[i + 1].id))
            first.push_back({found->rank, static_cast<std::int32_t>(i), found->id});
    }
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(), std::move(first));
    while (!queue.empty()) {
        const Candidate top = queue.top();
        queue.pop();
        Symbol& left = symbols[index(top.place)];
        if (left.length == 0 || left.next < 0) continue;
        Symbol& right = symbols[index(left.next)];
        const auto* still = merges_.find(left.id, right.id);
        if (still == nullptr || still->id != top.id) continue;  // one of the two was joined with another
        left.id = top.id;
        left.length += right.length;
        left.next = right.next;
        right.length = 0;
        if (left.next >= 0) symbols[index(left.next)].previous = top.place;
        if (left.previous >= 0) {
            if (const auto* found = merges_.find(symbols[index(left.previous)].id, left.id))
                queue.push({found->rank, left.previous, found->id});
        }
        if (left.next >= 0) {
            if (const auto* found = merges_.find(left.id, symbols[index(left.next)].id))
                queue.push({found->rank, top.place, found->id});
        }
    }
}

}  // namespace trtprune::text
