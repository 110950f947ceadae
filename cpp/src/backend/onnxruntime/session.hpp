#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "backend/binding.hpp"
#include "backend/onnxruntime/library.hpp"
#include "backend/session.hpp"

namespace trtprune::backend::onnxruntime {

/// One graph in ONNX Runtime; see `Session`.
class GraphSession : public Session {
  public:
    /// \throws EngineDirError  if the graph has other tensors than the component says.
    GraphSession(std::shared_ptr<const Library> library, SessionHandle session,
                 const engine_dir::ComponentInfo& component);

    Tensors run(const Tensors& inputs, Cache* cache) override;
    std::unique_ptr<Cache> new_cache(std::int64_t batch, std::int64_t capacity, std::unique_ptr<Cache> reuse) override;
    std::unique_ptr<Cache> grow_cache(std::unique_ptr<Cache> cache, std::int64_t capacity) override;
    std::int64_t max_batch() const override { return std::numeric_limits<std::int64_t>::max(); }
    std::optional<std::int64_t> capacity() const override { return std::nullopt; }

  private:
    GraphTensors tensors(bool inputs) const;
    Tensor taken(OrtValue* value) const;

    std::shared_ptr<const Library> library_;
    SessionHandle session_;
    std::vector<CachePair> pairs_;
    std::vector<engine_dir::TensorSpec> inputs_;
    std::vector<engine_dir::TensorSpec> outputs_;
};

}  // namespace trtprune::backend::onnxruntime
