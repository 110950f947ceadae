#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/vocabulary.hpp"

namespace trtprune::text {

/// The content of a tokenizer.json, its two long members apart.
struct TokenizerFile {
    nlohmann::json members;  ///< without `model.vocab` and `model.merges`
    Vocabulary vocabulary;
    bool has_vocabulary = false, has_merges = false;

    /// The merges as pairs of texts; valid as long as this object.
    std::vector<std::pair<std::string_view, std::string_view>> merges() const;

    std::string merge_texts;                                          // one behind the other
    std::vector<std::pair<std::uint32_t, std::uint32_t>> merge_ends;  // where the texts of each pair end
};

/// Reads a tokenizer.json.
///
/// \param name  The file's name, for messages.
/// \throws EngineDirError  if it is too large (the limits of `trtprune.text.tokens`), no JSON, or of another shape.
TokenizerFile read_tokenizer_file(std::string_view json, const std::string& name);

}  // namespace trtprune::text
