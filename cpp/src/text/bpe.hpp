#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/vocabulary.hpp"

namespace trtprune::text {

/// Settings of a BPE model, as tokenizer.json names them.
struct BpeSettings {
    std::optional<std::string> unk_token;
    std::string continuing_subword_prefix, end_of_word_suffix;
    bool fuse_unk = false, byte_fallback = false, ignore_merges = false;
};

/// A token of a word and its bytes [start, end) there.
struct WordToken {
    std::uint32_t id;
    std::size_t start, end;
};

/// A byte pair encoding: words to tokens, in time n log n of their length.
class Bpe {
  public:
    /// \param merges  Pairs of texts in order of their rank.
    /// \param name    The file's name, for messages.
    /// \throws EngineDirError  if a pair or what it becomes is not in the vocabulary.
    Bpe(BpeSettings settings, Vocabulary vocabulary,
        const std::vector<std::pair<std::string_view, std::string_view>>& merges, const std::string& name);

    const Vocabulary& vocabulary() const noexcept { return vocabulary_; }

    /// Tokens of a word, UTF-8.
    ///
    /// \throws InputError  if it has a character that neither the vocabulary nor a token for unknown ones covers.
    std::vector<WordToken> tokenize(std::string_view word) const;

  private:
    struct Symbol {
        std::uint32_t id;
        std::int32_t previous, next;
        std::uint32_t length;
    };

    std::vector<Symbol> symbols_of(std::string_view word) const;
    bool add_bytes(const std::string& text, std::vector<Symbol>& symbols) const;
    void merge(std::vector<Symbol>& symbols) const;

    BpeSettings settings_;
    Vocabulary vocabulary_;
    Merges merges_;
    std::vector<std::optional<std::uint32_t>> bytes_;  // ids of <0x00> …
};

}  // namespace trtprune::text
