#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

/// What a directory says of its texts, `text` of `config.json`; the twin of `trtprune.text.info`.
///
/// docs/engine-directory.md says how prompts are made of it.
namespace trtprune::text {

/// A token that is found in a text before the tokenizer's model sees it.
struct AddedTokenInfo {
    std::int64_t id = 0;
    std::string content;
    bool single_word = false, lstrip = false, rstrip = false, normalized = false;
    bool special = false;  ///< taken apart like other text if `encode_special_tokens`
    bool skipped = false;  ///< left out of the text of an answer
    std::string decoded;   ///< what the decoder gets for it
};

/// What other files than tokenizer.json say of the tokenizer, and what follows from all of them.
struct TokenizerInfo {
    std::vector<AddedTokenInfo> added_tokens;  ///< by ascending id; they replace those of tokenizer.json
    bool encode_special_tokens = false;
    /// Ids around those of a text encoded with special tokens; not set: the post-processor does something else.
    std::optional<std::vector<std::int64_t>> before, after;
    std::optional<std::string> bos;  ///< a prompt of the template that begins with it is encoded without them
};

/// A step in writing a prompt: `literal`, `images`, `text`, `system`, `open` or `close`.
struct PieceInfo {
    std::string kind;
    std::string value, left, right;
};

/// The pieces of a turn, if its conditions hold; not set is no condition.
struct Rule {
    std::optional<bool> system, first, last, images;
    std::vector<PieceInfo> pieces;
};

/// An error in place of a prompt; `error` is `input` or `directory`.
struct Refusal {
    std::optional<bool> system, several;
    std::string error, message, hint;
};

/// A chat template as pieces: refusals, then `begin` or `system`, then a rule for each turn, then `end`.
struct TemplateInfo {
    std::vector<PieceInfo> begin, system;
    std::vector<Rule> user, assistant, end;  ///< the first rule that holds counts
    std::vector<Refusal> refusals;
    bool own_images = false;  ///< whether placeholders stand in literals, whatever the number of images
};

/// Tokenizer and chat template.
struct TextInfo {
    TokenizerInfo tokenizer;
    std::optional<TemplateInfo> chat_template;  ///< `template` in config.json; not set: `reason` says why
    std::optional<std::string> reason;

    /// The first fault of the values, a text that begins with the field; not set if there is none.
    std::optional<std::string> wrong() const;
};

}  // namespace trtprune::text
