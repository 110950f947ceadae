#pragma once

#include <memory>
#include <vector>

#include "backend/binding.hpp"
#include "backend/onnxruntime/library.hpp"
#include "backend/session.hpp"

namespace trtprune::backend::onnxruntime {

/// KV buffers of the host, one for each cache input, each [batch, heads, capacity, head_dim].
///
/// All are views of one block of bytes.
class OrtCache : public Cache {
  public:
    /// Buffers of zeros.
    ///
    /// \param pairs  The graph's cache inputs.
    /// \param reuse  A cache that is no longer used, or NULL; its block is taken if it is large enough, and not much
    ///               larger.
    /// \throws BackendError  if there is no memory for them.
    OrtCache(std::shared_ptr<const Library> library, const std::vector<CachePair>& pairs, std::int64_t batch,
             std::int64_t capacity, const OrtCache* reuse);

    std::int64_t batch() const override { return batch_; }
    std::int64_t capacity() const override { return capacity_; }
    std::int64_t nbytes() const override { return nbytes_; }

    /// Copies the rows of another cache to the beginning of this one's.
    void begin_with(const OrtCache& other);
    /// The buffers, in the order of the pairs.
    const std::vector<Value>& values() const noexcept { return values_; }

  private:
    std::shared_ptr<const Library> library_;
    Tensor block_;
    std::vector<Tensor> buffers_;
    std::vector<Value> values_;
    std::int64_t batch_;
    std::int64_t capacity_;
    std::int64_t nbytes_ = 0;
};

}  // namespace trtprune::backend::onnxruntime
