#pragma once

#include <vector>

#include "runtime/cut_decoder.hpp"

namespace trtprune::runtime {

/// Embedding lookup and all segments in sequence; see `backend::Step`.
class SegmentStep : public backend::Step {
  public:
    SegmentStep(backend::Session& embed, std::vector<backend::Session*> segments, SegmentCaches& cache,
                backend::Memory& memory, bool rated);

    /// Position and slot are those of the first segment.
    Tensor run(const Ids& token, const Ids& position, const Ids& write_index) override;

  private:
    backend::Session& embed_;
    std::vector<backend::Session*> segments_;
    SegmentCaches& cache_;
    backend::Memory& memory_;
    bool rated_;
};

}  // namespace trtprune::runtime
