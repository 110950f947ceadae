#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "text/bpe.hpp"
#include "text/normalizers.hpp"
#include "text/pre_tokenizers.hpp"
#include "text/tokenizer.hpp"

namespace trtprune::text {

/// Finds the longest of several texts at the leftmost place, again and again.
class TextFinder {
  public:
    struct Match {
        std::size_t start, end;
        std::uint32_t id;
    };

    TextFinder() = default;
    /// \param texts  Not empty, each once, with their ids.
    explicit TextFinder(std::vector<std::pair<std::string, std::uint32_t>> texts);

    /// \throws InputError  if the search takes too many steps.
    std::vector<Match> find_all(std::string_view text) const;

  private:
    std::vector<std::pair<std::string, std::uint32_t>> texts_;  // sorted
    // For each first byte the rows [first, last) of `texts_`.
    std::vector<std::pair<std::size_t, std::size_t>> rows_;
};

/// The tokens that are found in a text before the model sees it.
class AddedTokens {
  public:
    /// Adds tokens in this order: known ones take the new flags, others the next free id.
    ///
    /// \throws EngineDirError  if two tokens are the same text to the normalizer, or one is none.
    void add(const std::vector<AddedToken>& tokens, const Vocabulary& vocabulary, const Normalizer* normalizer,
             const std::string& name);

    /// Takes tokens in place of all others, with their ids.
    ///
    /// \throws EngineDirError  if an id or text is that of another token, or as `add` does.
    void replace(const std::vector<AddedTokenInfo>& tokens, const Vocabulary& vocabulary, const std::string& name);

    /// The pieces of a text, normalised; those that are added tokens have their ids.
    ///
    /// \param split_special  Whether the texts of special tokens are text like any other.
    std::vector<Piece> extract(std::string_view text, const Normalizer* normalizer, bool split_special) const;

    std::optional<std::uint32_t> id(std::string_view content) const;
    /// The text that decoding takes for an id: of a normalised token, that of the normalizer.
    std::optional<std::string> text(std::uint32_t id) const;
    /// Whether decoding leaves an id out.
    bool skips(std::int64_t id) const { return skipped_.count(id) != 0; }
    const std::set<std::int64_t>& skipped() const noexcept { return skipped_; }
    const std::unordered_map<std::string, std::uint32_t>& ids() const noexcept { return ids_; }

  private:
    void build_finders(const std::string& name);
    void split(std::vector<Piece>& pieces, const TextFinder& finder, bool split_special) const;
    std::vector<Piece> cut(const AlignedText& text, const TextFinder& finder, bool split_special) const;

    std::unordered_map<std::string, std::uint32_t> ids_;
    std::map<std::uint32_t, AddedToken> by_id_;
    std::unordered_map<std::uint32_t, std::string> normalized_;  // where the normalizer changes the content
    std::unordered_set<std::string> special_;
    std::set<std::int64_t> skipped_;
    TextFinder plain_finder_, normalized_finder_;
};

}  // namespace trtprune::text
