#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/info.hpp"

namespace trtprune::text {

/// A token that is found in the text before the model sees it; the flags are those of Hugging Face `tokenizers`.
struct AddedToken {
    std::string content;
    bool single_word = false;
    bool lstrip = false;
    bool rstrip = false;
    bool normalized = true;
    bool special = false;
};

/// The tokens of a text.
struct Encoding {
    std::vector<std::int64_t> ids;
    /// For each token the characters (code points) [start, end) of the text that it stands for.
    std::vector<std::pair<std::int64_t, std::int64_t>> offsets;
};

/// A `tokenizer.json` of the type BPE, at byte level or with byte fallback: ids, offsets and texts are those of
/// Hugging Face `tokenizers`.
///
/// Objects share what they hold, so copies are cheap; `const` members may be called from several threads.
class Tokenizer {
  public:
    /// Reads the content of a tokenizer.json; truncation and padding are left out.
    ///
    /// \param json  The file's content.
    /// \param name  The file's name, for messages.
    /// \throws EngineDirError  if the file is broken or too large, or has a part that is not supported, by its name.
    static Tokenizer from_json(std::string_view json, const std::string& name = "tokenizer.json");

    /// Adds tokens in this order; known ones take the new flags, others the next free id.
    void add_tokens(const std::vector<AddedToken>& tokens);

    /// Takes tokens in place of all added ones, with their ids.
    ///
    /// \throws EngineDirError  if an id or text is that of another token.
    void replace_added_tokens(const std::vector<AddedTokenInfo>& tokens);

    /// Whether the texts of special tokens are split like other text.
    void set_encode_special_tokens(bool value);

    /// Ids and places of a text's tokens.
    ///
    /// \param text                UTF-8.
    /// \param add_special_tokens  Whether the post-processor adds its tokens (`<s>` …).
    /// \throws InputError  if the text is not UTF-8 or cannot be tokenised.
    Encoding encode(std::string_view text, bool add_special_tokens = true) const;

    /// Text of ids; unknown ids are left out, as are special tokens if asked.
    std::string decode(const std::vector<std::int64_t>& ids, bool skip_special_tokens = true) const;

    std::optional<std::int64_t> token_to_id(std::string_view token) const;
    std::optional<std::string> id_to_token(std::int64_t id) const;

    /// Number of tokens, with added ones.
    std::int64_t size() const;

    /// Ids that decoding leaves out, ascending.
    std::vector<std::int64_t> skipped_ids() const;

    /// Ids of single bytes (`<0x0A>`), ascending, if the decoder joins them to characters.
    std::vector<std::int64_t> byte_ids() const;

  private:
    struct State;
    explicit Tokenizer(std::shared_ptr<State> state);
    std::shared_ptr<State> state_;
};

}  // namespace trtprune::text
