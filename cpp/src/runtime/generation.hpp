#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend/session.hpp"
#include "runtime/answer.hpp"

namespace trtprune::runtime {

using Answers = std::vector<std::unique_ptr<Answer>>;

/// Generates until every row is done, one token for each row in every round.
///
/// The cache then has each row's prompt and answer without the last token.
///
/// \param rows      The rows of the batch, their prompts in the cache.
/// \param logits    float32 [B, V], the logits behind each prompt.
/// \param step      The decode step over the cache.
/// \param capacity  Tokens of a row in the cache.
/// \param axes      Numbers of a position.
/// \param clock     Counts the time as `decode`.
/// \param told      Called after each round of tokens.
void generate(const Answers& rows, Tensor logits, backend::Step& step, std::int64_t capacity, std::int64_t axes,
              Clock& clock, const std::function<void()>& told);

}  // namespace trtprune::runtime
