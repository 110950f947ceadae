#include "runtime/kv_cache.hpp"

#include <algorithm>
#include <trtprune/error.hpp>
#include <utility>

namespace trtprune::runtime {

std::int64_t round_capacity(std::int64_t tokens, std::int64_t limit) {
    const std::int64_t step = tokens <= 256 ? 16 : 64;
    return std::min((tokens + step - 1) / step * step, limit);
}

void check_length(std::int64_t prompt, std::int64_t max_new_tokens, const Limit& limit) {
    // The last token of an answer is never fed back, so it needs no place.
    if (max_new_tokens - 1 <= limit.tokens - prompt) return;
    const bool positions = limit.kind == Limit::Kind::positions;
    std::string hint = "shorten the prompt or max_new_tokens";
    if (!positions) {
        const std::string less =
            limit.whole_images ? "fewer images (all of their tokens pass the first layers)" : "a smaller keep";
        const std::string first = prompt >= limit.tokens
                                      ? "shorten the prompt"
                                      : "max_new_tokens up to " + std::to_string(limit.tokens - prompt + 1);
        hint = first + ", " + less + ", or build with a larger max_seq_len";
    }
    // Positions are no count of tokens: dropped ones may keep theirs, and images may take fewer.
    const std::string size =
        positions ? "takes " + std::to_string(prompt) + " positions" : "has " + std::to_string(prompt) + " tokens";
    throw InputError("the prompt " + size + " and max_new_tokens is " + std::to_string(max_new_tokens) + "; " +
                         (positions ? "the model's positions end at " : "the KV cache was built for ") +
                         std::to_string(limit.tokens),
                     hint);
}

CachePool::CachePool(backend::Session& session, const engine_dir::KvInfo& info)
    // An engine's capacity is fixed, and a later segment's is smaller than the directory's.
    : session_(&session), limit_(std::min(info.capacity, session.capacity().value_or(info.capacity))) {}

std::unique_ptr<backend::Cache> CachePool::take(std::int64_t batch, std::int64_t tokens) {
    return session_->new_cache(batch, round_capacity(tokens, limit_), std::exchange(free_, nullptr));
}

std::unique_ptr<backend::Cache> CachePool::grow(std::unique_ptr<backend::Cache> cache, std::int64_t tokens) {
    if (tokens <= cache->capacity()) return cache;
    return session_->grow_cache(std::move(cache), round_capacity(tokens, limit_));
}

void CachePool::give_back(std::unique_ptr<backend::Cache> cache) {
    if (cache != nullptr && (free_ == nullptr || cache->nbytes() >= free_->nbytes())) free_ = std::move(cache);
}

}  // namespace trtprune::runtime
