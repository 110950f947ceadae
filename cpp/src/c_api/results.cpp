#include <trtprune/trtprune.h>

#include "c_api/handles.hpp"

using namespace trtprune::c_api;

namespace {

/// A member of the result's, or what stands for no such handle.
template <class Get>
auto member(const trtprune_result* handle, Get&& get, decltype(get(std::declval<const trtprune::Result&>())) none) {
    const auto known = object_or_none<ResultObject>(handle);
    return known ? get(known->result) : none;
}

using Numbers = std::vector<std::int64_t>;

const std::int64_t* array(const Numbers* numbers, std::size_t* count) {
    if (count != nullptr) *count = numbers == nullptr ? 0 : numbers->size();
    return numbers == nullptr ? nullptr : numbers->data();
}

const Numbers* at(const std::vector<Numbers>& rows, std::size_t index) {
    return index < rows.size() ? &rows[index] : nullptr;
}

}  // namespace

extern "C" {

const char* trtprune_result_text(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return r.text.c_str(); }, nullptr);
}

const char* trtprune_result_finish_reason(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return r.finish_reason.c_str(); }, nullptr);
}

const char* trtprune_result_method(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return r.method.c_str(); }, nullptr);
}

const char* trtprune_result_json(const trtprune_result* result) {
    const auto known = object_or_none<ResultObject>(result);
    return known ? known->json.c_str() : nullptr;
}

const int64_t* trtprune_result_token_ids(const trtprune_result* result, size_t* count) {
    return array(member(
                     result, [](const auto& r) { return &r.token_ids; }, nullptr),
                 count);
}

int64_t trtprune_result_visual_tokens(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return r.visual_tokens; }, -1);
}

int64_t trtprune_result_kept_tokens(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return r.kept_tokens; }, -1);
}

int64_t trtprune_result_image_count(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return static_cast<std::int64_t>(r.kept_indices.size()); }, -1);
}

const int64_t* trtprune_result_kept_indices(const trtprune_result* result, size_t image, size_t* count) {
    return array(member(
                     result, [image](const auto& r) { return at(r.kept_indices, image); }, nullptr),
                 count);
}

const int64_t* trtprune_result_segment_tokens(const trtprune_result* result, size_t image, size_t* count) {
    return array(member(
                     result, [image](const auto& r) { return at(r.segment_tokens, image); }, nullptr),
                 count);
}

int64_t trtprune_result_prompt_tokens(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return r.prompt_tokens; }, -1);
}

int64_t trtprune_result_kv_cache_bytes(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return r.kv_cache_bytes; }, -1);
}

double trtprune_result_tokens_per_second(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return r.tokens_per_second; }, -1);
}

double trtprune_result_tokens_per_layer(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return r.tokens_per_layer; }, -1);
}

double trtprune_result_time_to_first_token_ms(const trtprune_result* result) {
    return member(
        result, [](const auto& r) { return r.time_to_first_token_ms(); }, -1);
}

double trtprune_result_timing_ms(const trtprune_result* result, const char* stage) {
    const auto known = object_or_none<ResultObject>(result);
    if (!known || stage == nullptr) return -1;
    // Compared as they are: a look-up would make a string, and that may have no memory.
    for (const auto& [name, milliseconds] : known->result.timings) {
        if (name == stage) return milliseconds;
    }
    return -1;
}

int32_t trtprune_result_free(trtprune_result* result) {
    return release<ResultObject>(result);
}

}  // extern "C"
