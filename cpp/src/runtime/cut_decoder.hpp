#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "runtime/decoder.hpp"
#include "runtime/segment_rows.hpp"
#include "schedule.hpp"

namespace trtprune::runtime {

/// The caches of all segments for one batch.
class SegmentCaches : public DecoderCache {
  public:
    std::int64_t capacity() const override { return parts.at(0)->capacity(); }
    std::int64_t nbytes() const override;

    std::int64_t tokens = 0;                             ///< requested tokens of a row in the first segment
    std::vector<std::unique_ptr<backend::Cache>> parts;  ///< one per segment; NULL until its length is known
    /// For each segment and row, the difference of the row's later slots to those of the first segment.
    std::vector<Ids> dropped;
    std::vector<Ids> shift;                ///< the same of positions behind the images, on every axis
    std::vector<std::vector<Ids>> kept;    ///< for each row and image, indices of its tokens in the last segment
    std::vector<std::vector<Ids>> counts;  ///< for each row and image, its tokens in each segment
};

/// A decoder in segments, with visual tokens pruned between them.
///
/// For the loop around it this is one decoder.  Inside, each segment has a KV cache of its own, shorter than the one
/// before by the pruned tokens; a row's slot and position in a later segment are those of the first minus a number that
/// is fixed by its prompt.  The point graphs select the tokens, and `pruning.schedule` of the config says how many;
/// text is never pruned.
class CutDecoder : public Decoder {
  public:
    /// \param chain  With components of role `decoder` with segments; outlives the object.
    explicit CutDecoder(const Chain& chain);

    bool prunes() const override { return true; }
    std::int64_t max_batch() const override;
    void check_keep(std::int64_t keep) const override;
    std::unique_ptr<DecoderCache> take(std::int64_t batch, std::int64_t tokens) override;
    std::unique_ptr<DecoderCache> grow(std::unique_ptr<DecoderCache> cache, std::int64_t tokens) override;
    void give_back(std::unique_ptr<DecoderCache> cache) override;
    Prefill prefill(const std::vector<const Layout*>& layouts, DecoderCache& cache, const Ids& start) override;
    std::unique_ptr<backend::Step> step(DecoderCache& cache) override;

  private:
    /// What stays of an image at a prune point.
    struct Point {
        Ids kept;       ///< indices within the image
        Tensor states;  ///< theirs
        Tensor merged;  ///< merged states; no array without any
    };

    backend::Session& segment(std::size_t k) const;
    PromptRow begin(const Layout& layout, std::int64_t first, bool fresh) const;
    std::vector<Tensor> pieces_at(const std::vector<Tensor>& pieces, const Ids& rows) const;
    Ids raters(const Layout& layout, const Ids& picture, std::size_t number) const;
    Tensor pass(std::vector<PromptRow>& rows, SegmentCaches& cache, const Ids& start, bool fresh);
    void settle(std::size_t k, const std::vector<PromptRow>& rows, const std::vector<PromptRow>& whole,
                SegmentCaches& cache);
    Tensors run(std::size_t k, const std::vector<PromptRow>& rows, backend::Cache& cache, const Ids& slots) const;
    void advance(std::size_t k, std::size_t b, PromptRow& row, const Tensors& out) const;
    std::optional<Point> point(std::size_t k, std::size_t b, PromptRow& row, std::size_t number, const Ids& index,
                               const Tensors& out) const;
    std::int64_t keep_at(std::size_t k, PromptRow& row, std::size_t number, const Ids& index,
                         const Tensor& attention) const;
    std::int64_t rank(const Tensor& block) const;

    const Chain& chain_;
    const engine_dir::EngineDir& config_;
    const ScheduleInfo& schedule_;
    PositionRule positions_;
    std::size_t count_;
    bool rated_;
    std::vector<CachePool> pools_;
};

}  // namespace trtprune::runtime
