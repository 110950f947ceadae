#pragma once

#include <cstdint>
#include <optional>
#include <trtprune/vlm.hpp>

#include "backend/tensor.hpp"
#include "engine_dir/generation.hpp"
#include "runtime/processors.hpp"
#include "runtime/random.hpp"

namespace trtprune::runtime {

/// Longest answer without a limit.
constexpr std::int64_t no_limit = std::int64_t{1} << 62;

/// Settings of the choice: a caller's, with the checkpoint's for those that are not set.  `temperature` 0 is greedy;
/// `top_k` 0 and `top_p` 1 are off.
///
/// As in transformers, a caller's temperature makes a greedy checkpoint draw, with its own `top_k` (50 without one) and
/// `top_p`; 0 is greedy, whatever the checkpoint's settings.
class Sampling {
  public:
    /// \param checkpoint  Outlives the object; has the settings without an argument.
    /// \throws InputError  for a value out of range, naming the argument.
    Sampling(const engine_dir::GenerationInfo& checkpoint, const GenerateOptions& options);

    double temperature() const noexcept { return temperature_; }
    const std::optional<std::uint64_t>& seed() const noexcept { return seed_; }
    const engine_dir::GenerationInfo& checkpoint() const noexcept { return *checkpoint_; }
    /// The same with another seed; InputError for one out of range.
    Sampling with_seed(std::uint64_t seed) const;

    /// The processors of an answer's logits, in transformers' order.
    ///
    /// \param prompt          Ids of the prompt, with a placeholder for each visual token of an image.
    /// \param eos             Ids that end the answer.
    /// \param max_new_tokens  Longest answer.
    Processors processors(const Ids& prompt, const Ids& eos, std::int64_t max_new_tokens) const;

  private:
    void add_rules(Processors& list, const Ids& prompt, const Ids& eos, std::int64_t max_new_tokens) const;
    void add_filters(Processors& list) const;

    const engine_dir::GenerationInfo* checkpoint_;
    double temperature_;
    std::int64_t top_k_;
    double top_p_;
    double repetition_penalty_;
    std::optional<std::uint64_t> seed_;
};

/// Chooses the tokens of one row.  A row has its own settings and random numbers, so its draws do not depend on the
/// other rows of a batch.
class Sampler {
  public:
    /// Arguments as `Sampling::processors`.
    Sampler(const Sampling& sampling, Ids prompt, const Ids& eos, std::int64_t max_new_tokens);

    /// The next token for float32 [V] logits on the host; ties go to the lower id.
    ///
    /// \throws BackendError  if the largest logit is not finite, because the model computed NaN or overflowed; or if
    ///                       the checkpoint's settings exclude every token of a draw.
    std::int64_t choose(const backend::Tensor& logits);

  private:
    std::int64_t draw(const Scores& scores);

    double temperature_;
    bool checked_;
    Ids ids_;
    Processors processors_;
    Random random_;
};

}  // namespace trtprune::runtime
