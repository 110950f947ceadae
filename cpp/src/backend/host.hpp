#pragma once

#include <memory>
#include <vector>

#include "backend/session.hpp"

/// Memory and decode step of a backend whose arrays are on the host.
namespace trtprune::backend {

/// Host arrays; see `Memory`.
class HostMemory : public Memory {
  public:
    Tensor join(const std::vector<std::vector<Tensor>>& rows, std::int64_t width) override;
    Tensor concatenate(const std::vector<Tensor>& pieces) override;
    Tensor take(const Tensor& array, const std::vector<std::int64_t>& rows) override;
    Tensor to_host(const Tensor& array) override;
    void wait() override {}
};

/// Embedding lookup and decoder, one after the other; see `Step`.
class HostStep : public Step {
  public:
    HostStep(Session& embed, Session& decoder, Cache& cache);
    Tensor run(const std::vector<std::int64_t>& token, const std::vector<std::int64_t>& position,
               const std::vector<std::int64_t>& write_index) override;

  private:
    Session& embed_;
    Session& decoder_;
    Cache& cache_;
    Tensor first_;  // int64 [B, 1], zeros: the only token is the one whose logits are wanted
};

}  // namespace trtprune::backend
