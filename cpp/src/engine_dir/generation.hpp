#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace trtprune::engine_dir {

/// The largest number of token ids in one setting; each costs time for every token of an answer.
constexpr std::int64_t max_ids = 100'000;

/// The settings of `generation_config.json` that decide which token is next, with transformers' names and defaults.
///
/// The filters of a draw (`temperature` to `eta_cutoff`) act only if `do_sample` is true or the caller gives a
/// temperature; the others act on greedy decoding, too.
struct GenerationInfo {
    std::string source = "generation_config.json";  ///< `generation_config.json`, `config.json` or `ignored`
    bool do_sample = false;
    double temperature = 1.0;
    std::optional<double> top_h;
    std::int64_t top_k = 50;
    double top_p = 1.0;
    double min_p = 0.0;
    double typical_p = 1.0;
    double epsilon_cutoff = 0.0;
    double eta_cutoff = 0.0;
    /// Pairs of a sequence of ids and the number added to the logit of its last one.
    std::vector<std::pair<std::vector<std::int64_t>, double>> sequence_bias;
    double encoder_repetition_penalty = 1.0;
    double repetition_penalty = 1.0;
    std::int64_t no_repeat_ngram_size = 0;
    std::int64_t encoder_no_repeat_ngram_size = 0;
    std::vector<std::vector<std::int64_t>> bad_words_ids;
    std::int64_t min_length = 0;  ///< shortest prompt and answer together, counted with all visual tokens
    std::optional<std::int64_t> min_new_tokens;
    std::optional<std::int64_t> max_length;
    std::optional<std::int64_t> max_new_tokens;
    std::optional<std::int64_t> forced_bos_token_id;
    std::vector<std::int64_t> forced_eos_token_id;
    bool remove_invalid_values = false;
    /// Number of tokens before the penalty begins, and its factor.
    std::optional<std::pair<std::int64_t, double>> exponential_decay_length_penalty;
    std::vector<std::int64_t> suppress_tokens;
    std::vector<std::int64_t> begin_suppress_tokens;
    std::vector<std::string> stop_strings;  ///< texts that end an answer

    /// The first setting that a vocabulary of that size cannot have, as a text with its name first.
    std::optional<std::string> wrong(std::int64_t vocab_size) const;
};

}  // namespace trtprune::engine_dir
