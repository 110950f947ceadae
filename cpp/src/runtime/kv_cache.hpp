#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend/session.hpp"
#include "engine_dir/schema.hpp"

/// Size and memory of a batch's KV cache.
///
/// The buffers belong to the backend, and the decoder decides their content.
namespace trtprune::runtime {

/// The capacity of a row's buffers for so many tokens: rounded up, so that similar requests share one shape.
///
/// To 16 up to 256 tokens and to 64 above, never beyond `limit`.
std::int64_t round_capacity(std::int64_t tokens, std::int64_t limit);

/// A number of tokens with room, and what ends there.
struct Limit {
    enum class Kind { capacity, positions };

    std::int64_t tokens;
    Kind kind = Kind::capacity;
    /// Whether the prompt has all visual tokens whatever the budget, so that a smaller one is no help.
    bool whole_images = false;
};

/// Refuses a request that cannot be finished, before anything is computed for it.
///
/// \param prompt          Number of text tokens and kept visual tokens; of positions, the position behind the prompt.
/// \param max_new_tokens  Largest number of the answer's tokens.
/// \throws InputError  with the numbers and the flag to change.
void check_length(std::int64_t prompt, std::int64_t max_new_tokens, const Limit& limit);

/// Keeps the memory of the last finished batch for the next one.
class CachePool {
  public:
    /// \param session  The decoder; outlives the object.
    /// \param info     The directory's cache settings; `capacity` is the largest one of a row.
    CachePool(backend::Session& session, const engine_dir::KvInfo& info);

    /// Buffers of zeros for `batch` rows of at least `tokens` tokens each.
    std::unique_ptr<backend::Cache> take(std::int64_t batch, std::int64_t tokens);
    /// `cache`, or a larger one with its content, so that a row holds `tokens` tokens.
    std::unique_ptr<backend::Cache> grow(std::unique_ptr<backend::Cache> cache, std::int64_t tokens);
    /// Returns a cache that is not used any more.
    void give_back(std::unique_ptr<backend::Cache> cache);

  private:
    backend::Session* session_;
    std::int64_t limit_;
    std::unique_ptr<backend::Cache> free_;
};

}  // namespace trtprune::runtime
