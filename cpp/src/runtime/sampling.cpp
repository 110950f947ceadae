#include "runtime/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <trtprune/error.hpp>
#include <utility>

#include "arguments.hpp"
#include "runtime/numerics.hpp"

namespace trtprune::runtime {

using arguments::arg;

namespace {

template <typename T, typename... Args>
void add(Processors& list, Args&&... args) {
    list.push_back(std::make_unique<T>(std::forward<Args>(args)...));
}

std::uint64_t checked_seed(std::uint64_t seed) {
    if (seed >> 63) throw InputError(arg("seed", seed) + ": out of range", "0 to 2**63 - 1");
    return seed;
}

}  // namespace

Sampling::Sampling(const engine_dir::GenerationInfo& checkpoint, const GenerateOptions& options)
    : checkpoint_(&checkpoint),
      temperature_(options.temperature.value_or(checkpoint.do_sample ? checkpoint.temperature : 0.0)),
      top_k_(options.top_k.value_or(checkpoint.top_k)),
      // In transformers top_p = 0 keeps the likeliest token; the smallest number above 0 does the same.
      top_p_(
          options.top_p.value_or(checkpoint.top_p == 0 ? std::numeric_limits<double>::denorm_min() : checkpoint.top_p)),
      repetition_penalty_(options.repetition_penalty.value_or(checkpoint.repetition_penalty)),
      seed_(options.seed) {
    arguments::real("temperature", temperature_);
    arguments::real("top_p", top_p_);
    arguments::real("repetition_penalty", repetition_penalty_);
    arguments::whole("top_k", top_k_, 0, " (off)");
    if (temperature_ < 0) throw InputError(arg("temperature", temperature_) + ": must be 0 (greedy) or above");
    if (!(0 < top_p_ && top_p_ <= 1)) {
        throw InputError(arg("top_p", top_p_) + ": must be above 0 and at most 1 (off)");
    }
    if (repetition_penalty_ <= 0) {
        throw InputError(arg("repetition_penalty", repetition_penalty_) + ": must be above 0; 1 is off");
    }
    if (seed_) checked_seed(*seed_);
}

Sampling Sampling::with_seed(std::uint64_t seed) const {
    Sampling other = *this;
    other.seed_ = checked_seed(seed);
    return other;
}

Processors Sampling::processors(const Ids& prompt, const Ids& eos, std::int64_t max_new_tokens) const {
    Processors list;
    add_rules(list, prompt, eos, max_new_tokens);
    if (temperature_ != 0) add_filters(list);
    return list;
}

// The processors that also act on greedy decoding.
void Sampling::add_rules(Processors& list, const Ids& prompt, const Ids& eos, std::int64_t max_new_tokens) const {
    const engine_dir::GenerationInfo& info = *checkpoint_;
    const auto begin = static_cast<std::int64_t>(prompt.size());
    const std::int64_t shortest = info.min_new_tokens ? begin + *info.min_new_tokens : info.min_length;
    if (!info.sequence_bias.empty()) add<SequenceBias>(list, info.sequence_bias);
    if (info.encoder_repetition_penalty != 1) {
        add<RepetitionPenalty>(list, 1 / info.encoder_repetition_penalty, prompt);
    }
    if (repetition_penalty_ != 1) add<RepetitionPenalty>(list, repetition_penalty_);
    if (info.no_repeat_ngram_size != 0) add<NoRepeatNGram>(list, info.no_repeat_ngram_size);
    if (info.encoder_no_repeat_ngram_size != 0) {
        add<EncoderNoRepeatNGram>(list, info.encoder_no_repeat_ngram_size, prompt);
    }
    if (!info.bad_words_ids.empty()) add<BadWords>(list, info.bad_words_ids, eos);
    if (shortest != 0 && !eos.empty()) add<MinLength>(list, shortest, eos);
    if (info.forced_bos_token_id) add<Forced>(list, 1, Ids{*info.forced_bos_token_id});
    if (!info.forced_eos_token_id.empty()) {
        add<Forced>(list, begin + max_new_tokens - 1, info.forced_eos_token_id);
    }
    if (info.remove_invalid_values) add<RemoveInvalid>(list);
    if (info.exponential_decay_length_penalty && !eos.empty()) {
        const auto& [start, factor] = *info.exponential_decay_length_penalty;
        add<ExponentialDecay>(list, start + begin, factor, eos);
    }
    if (!info.suppress_tokens.empty()) add<Suppress>(list, info.suppress_tokens);
    if (!info.begin_suppress_tokens.empty()) {
        const bool late = begin <= 1 && info.forced_bos_token_id.has_value();
        add<BeginSuppress>(list, info.begin_suppress_tokens, begin + (late ? 1 : 0));
    }
}

// The processors before a draw.
void Sampling::add_filters(Processors& list) const {
    const engine_dir::GenerationInfo& info = *checkpoint_;
    if (temperature_ != 1) add<Temperature>(list, temperature_);
    if (info.top_h) add<TopH>(list, *info.top_h);
    if (top_k_ != 0) add<TopK>(list, top_k_);
    if (top_p_ < 1) add<TopP>(list, top_p_);
    if (info.min_p != 0) add<MinP>(list, info.min_p);
    if (info.typical_p < 1) add<Typical>(list, info.typical_p);
    if (info.epsilon_cutoff != 0) add<Epsilon>(list, info.epsilon_cutoff);
    if (info.eta_cutoff != 0) add<Eta>(list, info.eta_cutoff);
}

Sampler::Sampler(const Sampling& sampling, Ids prompt, const Ids& eos, std::int64_t max_new_tokens)
    : temperature_(sampling.temperature()),
      checked_(sampling.checkpoint().remove_invalid_values),
      ids_(std::move(prompt)),
      processors_(sampling.processors(ids_, eos, max_new_tokens)),
      random_(sampling.seed()) {}

std::int64_t Sampler::choose(const backend::Tensor& logits) {
    const float* values = logits.data<float>();
    const auto count = static_cast<std::size_t>(logits.size());
    if (count == 0 || (!checked_ && !std::isfinite(largest(values, count)))) {  // NaN, +inf, or nothing but -inf
        throw BackendError("the model's logits are not finite numbers", "build with " + arg("dtype", "float32"));
    }
    if (processors_.empty() && temperature_ == 0) return argmax(values, count);
    Scores scores(values, values + count);
    for (const auto& processor : processors_) processor->apply(ids_, scores);
    const std::int64_t token = temperature_ == 0 ? argmax(scores) : draw(scores);
    if (!processors_.empty()) ids_.push_back(token);
    return token;
}

std::int64_t Sampler::draw(const Scores& scores) {
    if (!std::isfinite(largest(scores))) {
        throw BackendError(
            "the checkpoint's generation_config.json rules out every token, and nothing is left to draw from",
            arg("temperature", 0) + ", or build with " + arg("generation_config", "ignore"));
    }
    // Inverse of the cumulative distribution in float64, so that each token takes one random number.
    const std::vector<double> total = cumulative(softmax(std::vector<double>(scores.begin(), scores.end())));
    const double place = random_.next() * total.back();
    const auto token = static_cast<std::size_t>(std::upper_bound(total.begin(), total.end(), place) - total.begin());
    if (token >= scores.size() || scores[token] == -std::numeric_limits<float>::infinity()) return argmax(scores);
    return static_cast<std::int64_t>(token);
}

}  // namespace trtprune::runtime
