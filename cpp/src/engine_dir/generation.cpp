#include "engine_dir/generation.hpp"

#include <algorithm>
#include <unordered_set>

namespace trtprune::engine_dir {

namespace {

constexpr std::int64_t max_length_limit = std::int64_t{1} << 40;

using Fault = std::optional<std::string>;

bool within(std::int64_t value, std::int64_t low) {
    return low <= value && value <= max_length_limit;
}

Fault wrong_lengths(const GenerationInfo& info) {
    const std::string limit = std::to_string(max_length_limit);
    const std::pair<const char*, std::int64_t> from_zero[] = {
        {"no_repeat_ngram_size", info.no_repeat_ngram_size},
        {"encoder_no_repeat_ngram_size", info.encoder_no_repeat_ngram_size},
        {"min_length", info.min_length},
        {"min_new_tokens", info.min_new_tokens.value_or(0)},
        {"top_k", info.top_k},
    };
    for (const auto& [name, value] : from_zero) {
        if (!within(value, 0)) return std::string(name) + " must be between 0 and " + limit;
    }
    const std::pair<const char*, std::int64_t> from_one[] = {{"max_length", info.max_length.value_or(1)},
                                                             {"max_new_tokens", info.max_new_tokens.value_or(1)}};
    for (const auto& [name, value] : from_one) {
        if (!within(value, 1)) return std::string(name) + " must be between 1 and " + limit;
    }
    return {};
}

Fault wrong_draws(const GenerationInfo& info) {
    if (!(info.temperature > 0)) return "temperature must be above 0";
    if (!(0 <= info.top_p && info.top_p <= 1)) return "top_p must be between 0 and 1";
    if (!(0 <= info.min_p && info.min_p <= 1)) return "min_p must be between 0 and 1";
    if (!(0 < info.typical_p && info.typical_p <= 1)) return "typical_p must be above 0 and at most 1";
    if (info.top_h && !(0 < *info.top_h && *info.top_h <= 1)) return "top_h must be above 0 and at most 1";
    if (!(0 <= info.epsilon_cutoff && info.epsilon_cutoff < 1)) return "epsilon_cutoff must be at least 0 and below 1";
    if (!(0 <= info.eta_cutoff && info.eta_cutoff < 1)) return "eta_cutoff must be at least 0 and below 1";
    return {};
}

// Checks the ids of one setting, given in several sequences.
template <class Sequences>
Fault wrong_ids_of(const char* name, const Sequences& sequences, std::int64_t vocab_size) {
    std::size_t count = 0;
    bool outside = false;
    for (const std::vector<std::int64_t>* ids : sequences) {
        count += ids->size();
        outside = outside ||
                  std::any_of(ids->begin(), ids->end(), [&](std::int64_t id) { return id < 0 || id >= vocab_size; });
    }
    if (count > static_cast<std::size_t>(max_ids)) {
        return std::string(name) + " must hold at most " + std::to_string(max_ids) + " ids";
    }
    if (outside) return std::string(name) + " must hold ids from 0 to " + std::to_string(vocab_size - 1);
    return {};
}

Fault wrong_ids(const GenerationInfo& info, std::int64_t vocab_size) {
    using Sequences = std::vector<const std::vector<std::int64_t>*>;
    std::vector<std::int64_t> first;
    if (info.forced_bos_token_id) first.push_back(*info.forced_bos_token_id);
    Sequences words;
    Sequences biased;
    for (const auto& word : info.bad_words_ids) words.push_back(&word);
    for (const auto& [sequence, bias] : info.sequence_bias) biased.push_back(&sequence);
    const std::pair<const char*, Sequences> settings[] = {
        {"forced_bos_token_id", {&first}},
        {"forced_eos_token_id", {&info.forced_eos_token_id}},
        {"suppress_tokens", {&info.suppress_tokens}},
        {"begin_suppress_tokens", {&info.begin_suppress_tokens}},
        {"bad_words_ids", words},
        {"sequence_bias", biased},
    };
    for (const auto& [name, sequences] : settings) {
        if (Fault fault = wrong_ids_of(name, sequences, vocab_size)) return fault;
    }
    const auto empty = [](const std::vector<std::int64_t>* ids) { return ids->empty(); };
    if (std::any_of(words.begin(), words.end(), empty) || std::any_of(biased.begin(), biased.end(), empty)) {
        return "bad_words_ids and sequence_bias must not hold an empty sequence";
    }
    const std::unordered_set<std::int64_t> suppressed(info.suppress_tokens.begin(), info.suppress_tokens.end());
    const std::pair<const char*, const std::vector<std::int64_t>*> forced[] = {
        {"forced_bos_token_id", &first}, {"forced_eos_token_id", &info.forced_eos_token_id}};
    for (const auto& [name, ids] : forced) {
        const auto is_suppressed = [&](std::int64_t id) { return suppressed.count(id) > 0; };
        if (!ids->empty() && std::all_of(ids->begin(), ids->end(), is_suppressed)) {
            return std::string("suppress_tokens must not hold all of ") + name;
        }
    }
    return {};
}

}  // namespace

// Numbers are finite: the reader of the file takes no others.
std::optional<std::string> GenerationInfo::wrong(std::int64_t vocab_size) const {
    if (source != "generation_config.json" && source != "config.json" && source != "ignored") {
        return "source must be one of generation_config.json, config.json, ignored";
    }
    if (!(repetition_penalty > 0)) return "repetition_penalty must be above 0";
    if (!(encoder_repetition_penalty > 0)) return "encoder_repetition_penalty must be above 0";
    if (Fault fault = wrong_lengths(*this)) return fault;
    if (Fault fault = wrong_draws(*this)) return fault;
    if (Fault fault = wrong_ids(*this, vocab_size)) return fault;
    const auto& decay = exponential_decay_length_penalty;
    if (decay && !(within(decay->first, 0) && decay->second > 0)) {
        return "exponential_decay_length_penalty must be a number of tokens and a factor above 0";
    }
    if (std::any_of(stop_strings.begin(), stop_strings.end(), [](const auto& text) { return text.empty(); })) {
        return "stop_strings must not hold an empty text";
    }
    return {};
}

}  // namespace trtprune::engine_dir
