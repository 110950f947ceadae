#pragma once

#include <memory>
#include <vector>

#include "runtime/chain.hpp"
#include "runtime/kv_cache.hpp"
#include "runtime/layout.hpp"

/// The decoder for the exchange: memory for a batch, from prompts to logits, then token by token.
///
/// Two kinds: `WholeDecoder` is one graph; `CutDecoder` has segments with prune points between them.  `open_decoder`
/// chooses one when the directory is opened; no other code depends on the kind.
namespace trtprune::runtime {

/// The results of a batch of prompts.
struct Prefill {
    Tensor logits;  ///< float32 [B, V] on the host, the logits behind each row's last token
    /// For each row and image, ascending, indices of its visual tokens in the last layer.
    std::vector<std::vector<Ids>> kept;
    /// For each row and image, its tokens in each segment, with merged ones; empty if the decoder does not prune.
    std::vector<std::vector<Ids>> segment_tokens;
};

/// A decoder's cache for a batch.
class DecoderCache {
  public:
    virtual ~DecoderCache() = default;

    /// Tokens of a row.
    virtual std::int64_t capacity() const = 0;
    virtual std::int64_t nbytes() const = 0;
};

/// A decoder with its KV cache.
class Decoder {
  public:
    virtual ~Decoder() = default;

    /// Whether it prunes between its layers: all visual tokens enter, and the prompt decides which are kept.
    virtual bool prunes() const = 0;
    /// Rows it takes at once.
    virtual std::int64_t max_batch() const = 0;
    /// Refuses a budget within the build's range that the decoder cannot serve; raises BudgetError.
    virtual void check_keep(std::int64_t keep) const = 0;

    /// A cache for `batch` rows of at least `tokens` tokens each.
    virtual std::unique_ptr<DecoderCache> take(std::int64_t batch, std::int64_t tokens) = 0;
    /// `cache`, or a larger one with its content, so that a row holds `tokens` tokens.
    virtual std::unique_ptr<DecoderCache> grow(std::unique_ptr<DecoderCache> cache, std::int64_t tokens) = 0;
    /// Returns a cache that is not used any more.
    virtual void give_back(std::unique_ptr<DecoderCache> cache) = 0;

    /// Writes prompts into the cache.
    ///
    /// \param rows   One prompt for each row.
    /// \param cache  A cache with room for the longest one.
    /// \param start  For each row, the number of its tokens in the cache; the rest is computed.
    /// \throws InputError  for a prompt that cannot guide the decoder's pruning.
    virtual Prefill prefill(const std::vector<const Layout*>& rows, DecoderCache& cache, const Ids& start) = 0;

    /// The decode step over the cache, which outlives it.
    virtual std::unique_ptr<backend::Step> step(DecoderCache& cache) = 0;
};

/// The decoder of a directory, whole or cut.
std::unique_ptr<Decoder> open_decoder(const Chain& chain);

/// Positions of several rows, padded with zeros on the right: int64 [B, axes, width].
///
/// \param rows   For each row and axis its numbers.
/// \param first  For each row the number of tokens that are left out at the beginning.
Tensor position_table(const std::vector<const std::vector<Ids>*>& rows, const Ids& first, std::int64_t width);

/// Logits [B, 1, V] as [B, V] on the host.
Tensor last_logits(backend::Memory& memory, const Tensor& logits);

/// A decoder that is one graph; images were pruned before it.
class WholeDecoder : public Decoder {
  public:
    /// \param chain  With a component of role `decoder` without a segment; outlives the object.
    explicit WholeDecoder(const Chain& chain);

    bool prunes() const override { return false; }
    std::int64_t max_batch() const override;
    void check_keep(std::int64_t /*keep*/) const override {}
    std::unique_ptr<DecoderCache> take(std::int64_t batch, std::int64_t tokens) override;
    std::unique_ptr<DecoderCache> grow(std::unique_ptr<DecoderCache> cache, std::int64_t tokens) override;
    void give_back(std::unique_ptr<DecoderCache> cache) override;
    Prefill prefill(const std::vector<const Layout*>& rows, DecoderCache& cache, const Ids& start) override;
    std::unique_ptr<backend::Step> step(DecoderCache& cache) override;

  private:
    const Chain& chain_;
    CachePool pool_;
};

}  // namespace trtprune::runtime
