#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

namespace trtprune::text {

/// Tokens with their texts and places; several groups of them become one encoding.
struct TokenGroup {
    std::vector<std::int64_t> ids;
    std::vector<std::string> texts;
    std::vector<std::pair<std::int64_t, std::int64_t>> offsets;
};

/// Adds special tokens, and corrects places.
class PostProcessor {
  public:
    virtual ~PostProcessor() = default;
    virtual void apply(std::vector<TokenGroup>& groups, bool add_special_tokens) const = 0;
};

/// The `post_processor` of a tokenizer.json; nullptr for null.
///
/// \throws EngineDirError  if it is broken, or of a kind that is not supported.
std::unique_ptr<const PostProcessor> read_post_processor(const nlohmann::json& value, const std::string& name,
                                                         int depth = 0);

}  // namespace trtprune::text
