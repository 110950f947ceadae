#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trtprune::text {

/// Texts of tokens and their ids, in both directions.
///
/// The tables are open addressing with a bounded search, so that a file made of colliding texts is refused and not
/// slow.
class Vocabulary {
  public:
    /// Adds a token; the last id of a text counts.
    ///
    /// \throws EngineDirError  if the texts are made to collide, or take more than 4 GB.
    void add(std::string_view text, std::uint32_t id);

    /// Makes ids searchable, after the last `add`.
    ///
    /// \throws EngineDirError  if two texts have one id.
    void finish(const std::string& name);

    std::optional<std::uint32_t> id(std::string_view text) const;
    std::optional<std::string_view> text(std::uint32_t id) const;
    std::size_t size() const noexcept { return entries_.size(); }

  private:
    struct Entry {
        std::uint32_t start, length, id;
    };

    std::string_view text_of(const Entry& entry) const { return {texts_.data() + entry.start, entry.length}; }
    std::size_t find(
        std::string_view text) const;  // the slot of a text or a free one; none if it is not near its place
    void grow();

    std::string texts_;
    std::vector<Entry> entries_;
    std::vector<std::uint32_t> slots_;                             // index of an entry + 1; 0: free
    std::vector<std::uint32_t> direct_;                            // id → index of an entry + 1
    std::vector<std::pair<std::uint32_t, std::uint32_t>> sparse_;  // the same, sorted, for ids that are too large
};

/// Pairs of ids that a BPE model joins: rank and new id.
class Merges {
  public:
    struct Merge {
        std::uint32_t rank, id;
    };

    explicit Merges(std::size_t count = 0);

    /// Adds a pair; the last one of the same ids counts.
    void add(std::uint32_t first, std::uint32_t second, Merge merge);

    const Merge* find(std::uint32_t first, std::uint32_t second) const;

  private:
    struct Slot {
        std::uint64_t pair;
        Merge merge;
        bool used;
    };

    std::vector<Slot> slots_;
};

}  // namespace trtprune::text
