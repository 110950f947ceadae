#pragma once

#include <string>
#include <string_view>

/// The names of the graphs' inputs and outputs, as docs/engine-directory.md describes the tensors.
namespace trtprune::names {

// -- vision, pack, embed, clip_text
constexpr const char* pixel_values = "pixel_values";
constexpr const char* token_positions = "token_positions";
constexpr const char* window_index = "window_index";
constexpr const char* window_places = "window_places";
constexpr const char* image_features = "image_features";
constexpr const char* input_ids = "input_ids";
constexpr const char* text_embeds = "text_embeds";
constexpr const char* clip_text_embeds = "clip_text_embeds";

// -- pack
/// Prefix of the pack graph's outputs: `packed_image_features` is made of the input `image_features`.
constexpr std::string_view packed = "packed_";
constexpr const char* pack_index = "pack_index";
constexpr const char* pack_weight = "pack_weight";

// -- pruner
constexpr const char* text_mask = "text_mask";
constexpr const char* keep = "keep";
constexpr const char* seed = "seed";
constexpr const char* grid = "grid";
constexpr const char* kept_indices = "kept_indices";
constexpr const char* pruned_features = "pruned_features";
constexpr const char* merged_features = "merged_features";

// -- decoder
constexpr const char* inputs_embeds = "inputs_embeds";
constexpr const char* hidden_states = "hidden_states";
constexpr const char* position_ids = "position_ids";
constexpr const char* write_index = "write_index";
constexpr const char* logits_index = "logits_index";
constexpr const char* last_hidden_state = "last_hidden_state";
constexpr const char* logits = "logits";

// -- prune points inside the decoder
constexpr const char* rater_index = "rater_index";
constexpr const char* rater_attention = "rater_attention";
constexpr const char* rater_weights = "rater_weights";
constexpr const char* visual_index = "visual_index";
constexpr const char* recycled = "recycled";
constexpr const char* merged = "merged";
constexpr const char* raters = "raters";
constexpr const char* attention = "attention";
constexpr const char* rank = "rank";

// -- the KV cache
constexpr std::string_view past = "past_key_values.";
constexpr std::string_view present = "present.";

/// Whether a tensor is a cache input.
inline bool is_past(std::string_view name) {
    return name.substr(0, past.size()) == past;
}
/// Whether a tensor is a cache output.
inline bool is_present(std::string_view name) {
    return name.substr(0, present.size()) == present;
}
/// The cache output that is the same tensor as a cache input after the call.
inline std::string present_of(std::string_view name) {
    return std::string(present) + std::string(name.substr(past.size()));
}

}  // namespace trtprune::names
