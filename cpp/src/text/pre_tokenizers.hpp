#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "text/aligned_text.hpp"

namespace trtprune::text {

/// A piece of a text; the id of an added token, if it is one.
struct Piece {
    AlignedText text;
    std::optional<std::uint32_t> id;
};

/// Splits pieces that are no added tokens into words.
class PreTokenizer {
  public:
    virtual ~PreTokenizer() = default;
    virtual void apply(std::vector<Piece>& pieces) const = 0;
};

/// The `pre_tokenizer` of a tokenizer.json; nullptr for null.
///
/// \throws EngineDirError  if it is broken, or of a kind that is not supported.
std::unique_ptr<const PreTokenizer> read_pre_tokenizer(const nlohmann::json& value, const std::string& name,
                                                       int depth = 0);

}  // namespace trtprune::text
