#include "text/vocabulary.hpp"

#include <algorithm>
#include <limits>
#include <trtprune/error.hpp>
#include <utility>

namespace trtprune::text {

namespace {

constexpr std::size_t longest_search = 4096, none = std::numeric_limits<std::size_t>::max();

std::uint64_t mix(std::uint64_t value) {  // the finaliser of splitmix64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9ULL;
    value = (value ^ value >> 27) * 0x94D049BB133111EBULL;
    return value ^ value >> 31;
}

std::size_t hash(std::string_view text) {
    std::uint64_t value = 0x9E3779B97F4A7C15ULL ^ text.size();
    std::uint64_t word = 0;
    int filled = 0;
    for (const char c : text) {
        word = word << 8 | static_cast<unsigned char>(c);
        if (++filled < 8) continue;
        value = mix(value ^ word);
        word = 0;
        filled = 0;
    }
    return static_cast<std::size_t>(mix(value ^ word));
}

[[noreturn]] void collide() {
    throw EngineDirError("tokenizer.json: its tokens are made to collide in a table",
                         "correct the checkpoint's tokenizer.json");
}

}  // namespace

std::size_t Vocabulary::find(std::string_view text) const {
    if (slots_.empty()) return none;
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = hash(text) & mask;
    for (std::size_t i = 0; i < longest_search; ++i, slot = (slot + 1) & mask) {
        if (slots_[slot] == 0 || text_of(entries_[slots_[slot] - 1]) == text) return slot;
    }
    return none;
}

void Vocabulary::add(std::string_view text, std::uint32_t id) {
    if (slots_.size() < 2 * (entries_.size() + 1)) grow();
    const std::size_t slot = find(text);
    if (slot == none) collide();
    if (slots_[slot] != 0) {
        entries_[slots_[slot] - 1].id = id;
        return;
    }
    constexpr std::size_t limit = std::numeric_limits<std::uint32_t>::max();
    if (text.size() > limit - texts_.size())
        throw EngineDirError("tokenizer.json: more than 4 GB of tokens", "correct the checkpoint's tokenizer.json");
    entries_.push_back({static_cast<std::uint32_t>(texts_.size()), static_cast<std::uint32_t>(text.size()), id});
    texts_ += text;
    slots_[slot] = static_cast<std::uint32_t>(entries_.size());
}

void Vocabulary::grow() {
    slots_.assign(std::max<std::size_t>(1024, 2 * slots_.size()), 0);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        const std::size_t slot = find(text_of(entries_[i]));
        if (slot == none) collide();
        slots_[slot] = static_cast<std::uint32_t>(i + 1);
    }
}

void Vocabulary::finish(const std::string& name) {
    const std::size_t dense = 4 * entries_.size() + 1024;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
        const auto index = static_cast<std::uint32_t>(i + 1);
        const std::uint32_t id = entries_[i].id;
        if (id >= dense) {
            sparse_.emplace_back(id, index);
            continue;
        }
        if (direct_.size() <= id) direct_.resize(std::max<std::size_t>(id + 1, 2 * direct_.size()), 0);
        if (direct_[id] != 0)
            throw EngineDirError(name + ": two tokens have the id " + std::to_string(id),
                                 "correct the checkpoint's " + name);
        direct_[id] = index;
    }
    std::sort(sparse_.begin(), sparse_.end());
    const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
    const auto twice = std::adjacent_find(sparse_.begin(), sparse_.end(), same);
    if (twice != sparse_.end())
        throw EngineDirError(name + ": two tokens have the id " + std::to_string(twice->first),
                             "correct the checkpoint's " + name);
}

std::optional<std::uint32_t> Vocabulary::id(std::string_view text) const {
    const std::size_t slot = find(text);
    if (slot == none || slots_[slot] == 0) return std::nullopt;
    return entries_[slots_[slot] - 1].id;
}

std::optional<std::string_view> Vocabulary::text(std::uint32_t id) const {
    std::uint32_t index = id < direct_.size() ? direct_[id] : 0;
    if (index == 0) {
        const auto found = std::lower_bound(sparse_.begin(), sparse_.end(), std::make_pair(id, std::uint32_t{0}));
        if (found == sparse_.end() || found->first != id) return std::nullopt;
        index = found->second;
    }
    return text_of(entries_[index - 1]);
}

Merges::Merges(std::size_t count) {
    std::size_t size = 16;
    while (size < 2 * count) size *= 2;
    slots_.assign(size, {0, {0, 0}, false});
}

void Merges::add(std::uint32_t first, std::uint32_t second, Merge merge) {
    const std::uint64_t pair = static_cast<std::uint64_t>(first) << 32 | second;
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = static_cast<std::size_t>(mix(pair)) & mask;
    for (std::size_t i = 0; i < longest_search; ++i, slot = (slot + 1) & mask) {
        if (slots_[slot].used && slots_[slot].pair != pair) continue;
        slots_[slot] = {pair, merge, true};
        return;
    }
    collide();
}

const Merges::Merge* Merges::find(std::uint32_t first, std::uint32_t second) const {
    const std::uint64_t pair = static_cast<std::uint64_t>(first) << 32 | second;
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = static_cast<std::size_t>(mix(pair)) & mask;
    for (std::size_t i = 0; i < longest_search && slots_[slot].used; ++i, slot = (slot + 1) & mask) {
        if (slots_[slot].pair == pair) return &slots_[slot].merge;
    }
    return nullptr;
}

}  // namespace trtprune::text
