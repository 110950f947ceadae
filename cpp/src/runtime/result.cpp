#include <nlohmann/json.hpp>
#include <trtprune/vlm.hpp>

#include "runtime/clock.hpp"

namespace trtprune {

double Result::time_to_first_token_ms() const {
    double total = 0;
    for (const char* stage : {"preprocess", "vision", "prune", "prefill"}) {
        const auto found = timings.find(stage);
        if (found != timings.end()) total += found->second;
    }
    return runtime::rounded(total);
}

std::string Result::to_json() const {
    // In the order of the Python package.
    nlohmann::ordered_json stages = nlohmann::ordered_json::object();
    for (const char* stage : {"preprocess", "vision", "prune", "prefill", "decode", "total"}) {
        const auto found = timings.find(stage);
        if (found != timings.end()) stages[stage] = found->second;
    }
    nlohmann::ordered_json indices =
        kept_indices.size() == 1 ? nlohmann::ordered_json(kept_indices[0]) : nlohmann::ordered_json(kept_indices);
    nlohmann::ordered_json json{
        {"text", text},
        {"token_ids", token_ids},
        {"finish_reason", finish_reason},
        {"method", method},
        {"visual_tokens", visual_tokens},
        {"kept_tokens", kept_tokens},
        {"kept_indices", std::move(indices)},
        {"kept_indices_per_image", kept_indices},
        {"timings_ms", std::move(stages)},
        {"time_to_first_token_ms", time_to_first_token_ms()},
        {"tokens_per_second", tokens_per_second},
        {"kv_cache_bytes", kv_cache_bytes},
        {"prompt_tokens", prompt_tokens},
    };
    if (!segment_tokens.empty()) {
        json["segment_tokens"] = segment_tokens;
        json["tokens_per_layer"] = tokens_per_layer;
    }
    return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace trtprune
