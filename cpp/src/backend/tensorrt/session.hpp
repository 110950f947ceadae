#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/binding.hpp"
#include "backend/session.hpp"
#include "backend/tensorrt/execution.hpp"
#include "engine_dir/schema.hpp"

/// A component as an engine: arrays in, arrays out, all of them on the device; the twin of `session.py`.
namespace trtprune::backend::tensorrt {

/// The KV cache of a batch: one block of memory with the buffers of all layers in sequence.
class TrtCache : public Cache {
  public:
    TrtCache(Tensor slab, std::map<std::string, Tensor, std::less<>> views, std::int64_t batch, std::int64_t capacity);

    std::int64_t batch() const override { return batch_; }
    std::int64_t capacity() const override { return capacity_; }
    std::int64_t nbytes() const override { return nbytes_; }
    const Tensor& slab() const noexcept { return slab_; }
    /// The buffer of a cache input.
    const Tensor& view(const std::string& past) const { return views_.at(past); }
    /// Equal for caches whose buffers have the same addresses.
    std::pair<void*, std::int64_t> key() const { return {slab_.address(), batch_}; }

  private:
    Tensor slab_;
    std::map<std::string, Tensor, std::less<>> views_;
    std::int64_t batch_;
    std::int64_t capacity_;
    std::int64_t nbytes_ = 0;
};

/// One engine; see `Session`.
class TrtSession : public Session {
  public:
    /// \throws EngineDirError  if the engine has other tensors than the config says.
    TrtSession(engine_dir::ComponentInfo component, std::shared_ptr<Engine> engine);

    Tensors run(const Tensors& inputs, Cache* cache = nullptr) override;
    std::unique_ptr<Cache> new_cache(std::int64_t batch, std::int64_t capacity, std::unique_ptr<Cache> reuse) override;
    std::unique_ptr<Cache> grow_cache(std::unique_ptr<Cache> cache, std::int64_t capacity) override;
    std::int64_t max_batch() const override { return max_batch_; }
    std::optional<std::int64_t> capacity() const override { return capacity_; }

    const engine_dir::ComponentInfo& component() const noexcept { return component_; }
    Engine& engine() noexcept { return *engine_; }
    /// Tensors without the cache.
    const std::vector<engine_dir::TensorSpec>& inputs() const noexcept { return inputs_; }
    const std::vector<engine_dir::TensorSpec>& outputs() const noexcept { return outputs_; }
    /// Adds the cache's buffers to the inputs, and the same memory to the outputs.
    void bind_cache(const Cache& cache, Bindings& inputs, Bindings& outputs) const;

  private:
    void check_tensors() const;
    void check_capacity(std::int64_t capacity) const;

    engine_dir::ComponentInfo component_;
    std::shared_ptr<Engine> engine_;
    std::int64_t capacity_;
    std::int64_t max_batch_;
    std::vector<CachePair> pairs_;
    std::vector<engine_dir::TensorSpec> inputs_;
    std::vector<engine_dir::TensorSpec> outputs_;
    std::vector<std::unique_ptr<Context>> contexts_;
};

}  // namespace trtprune::backend::tensorrt
