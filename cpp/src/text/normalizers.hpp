#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "text/aligned_text.hpp"

namespace trtprune::text {

/// Changes a text before it is split.
class Normalizer {
  public:
    virtual ~Normalizer() = default;
    virtual void apply(AlignedText& text) const = 0;
};

/// The `normalizer` of a tokenizer.json; nullptr for null.
///
/// \throws EngineDirError  if it is broken, or of a kind that is not supported.
std::unique_ptr<const Normalizer> read_normalizer(const nlohmann::json& value, const std::string& name, int depth = 0);

/// A `pattern` of a Split or Replace: {"String": …} or {"Regex": …}.
Pattern read_pattern(const nlohmann::json& value, const std::string& where);

/// Replaces each byte by the character that byte-level vocabularies spell it with.
void spell_bytes(AlignedText& text);

/// The character that byte-level vocabularies spell a byte with.
char32_t byte_spelling(unsigned char byte);

}  // namespace trtprune::text
