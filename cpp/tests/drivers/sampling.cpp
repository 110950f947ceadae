// Chooses tokens as the runtime does.  A line in: {"checkpoint": members of GenerationInfo, "options": {…}, "prompt":
// ids, "eos": ids, "max_new_tokens": n, "logits": [[…], …]}; a line out: the token of each row of logits, in turn, or
// the error.

#include "runtime/sampling.hpp"

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <trtprune/error.hpp>

using nlohmann::json;
using trtprune::GenerateOptions;
using trtprune::engine_dir::GenerationInfo;
using trtprune::runtime::Ids;

namespace {

template <typename T>
void read(const json& object, const char* name, T& target) {
    if (object.contains(name)) target = object.at(name).get<T>();
}

template <typename T>
void read(const json& object, const char* name, std::optional<T>& target) {
    if (object.contains(name) && !object.at(name).is_null()) target = object.at(name).get<T>();
}

GenerationInfo checkpoint_of(const json& object) {
    GenerationInfo info;
    read(object, "do_sample", info.do_sample);
    read(object, "temperature", info.temperature);
    read(object, "top_h", info.top_h);
    read(object, "top_k", info.top_k);
    read(object, "top_p", info.top_p);
    read(object, "min_p", info.min_p);
    read(object, "typical_p", info.typical_p);
    read(object, "epsilon_cutoff", info.epsilon_cutoff);
    read(object, "eta_cutoff", info.eta_cutoff);
    read(object, "sequence_bias", info.sequence_bias);
    read(object, "encoder_repetition_penalty", info.encoder_repetition_penalty);
    read(object, "repetition_penalty", info.repetition_penalty);
    read(object, "no_repeat_ngram_size", info.no_repeat_ngram_size);
    read(object, "encoder_no_repeat_ngram_size", info.encoder_no_repeat_ngram_size);
    read(object, "bad_words_ids", info.bad_words_ids);
    read(object, "min_length", info.min_length);
    read(object, "min_new_tokens", info.min_new_tokens);
    read(object, "forced_bos_token_id", info.forced_bos_token_id);
    read(object, "forced_eos_token_id", info.forced_eos_token_id);
    read(object, "remove_invalid_values", info.remove_invalid_values);
    read(object, "exponential_decay_length_penalty", info.exponential_decay_length_penalty);
    read(object, "suppress_tokens", info.suppress_tokens);
    read(object, "begin_suppress_tokens", info.begin_suppress_tokens);
    return info;
}

GenerateOptions options_of(const json& object) {
    GenerateOptions options;
    read(object, "temperature", options.temperature);
    read(object, "top_k", options.top_k);
    read(object, "top_p", options.top_p);
    read(object, "repetition_penalty", options.repetition_penalty);
    read(object, "seed", options.seed);
    return options;
}

// JSON has no numbers for what is not finite.
float number_of(const json& value) {
    return value.is_string() ? std::stof(value.get<std::string>()) : value.get<float>();
}

json answer(const json& request) {
    const GenerationInfo checkpoint = checkpoint_of(request.at("checkpoint"));
    const trtprune::runtime::Sampling sampling(checkpoint, options_of(request.at("options")));
    trtprune::runtime::Sampler sampler(sampling, request.at("prompt").get<Ids>(), request.at("eos").get<Ids>(),
                                       request.at("max_new_tokens").get<std::int64_t>());
    json tokens = json::array();
    for (const json& row : request.at("logits")) {
        std::vector<float> logits;
        for (const json& value : row) logits.push_back(number_of(value));
        const auto count = static_cast<std::int64_t>(logits.size());
        tokens.push_back(sampler.choose(trtprune::backend::Tensor::of(logits, {count})));
    }
    return tokens;
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        json result;
        try {
            result = answer(json::parse(line));
        } catch (const trtprune::Error& error) {
            result = {{"error", error.message()}, {"hint", error.hint()}};
        }
        std::puts(result.dump().c_str());
    }
}
