#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/session.hpp"
#include "engine_dir/reading.hpp"
#include "engine_dir/schema.hpp"
#include "runtime/features.hpp"
#include "runtime/positions.hpp"

namespace trtprune::runtime {

/// The sessions of an engine directory, and the stages that need a single session.
///
/// Works on arrays and token ids.  `pruner` selects tokens, `decoder` runs the decoder, and `pipeline` connects all.
class Chain {
  public:
    /// Opens the sessions of all components, so that a provider that does not load fails here.
    ///
    /// \param config, backend  Outlive the object.
    /// \param checks           Comparisons of the weights with their digests, which run beside.
    /// \param beside           Other work of opening a directory.
    /// \throws Error  The first failure of the checks, else of the components in their order, else of the other work.
    Chain(const engine_dir::EngineDir& config, backend::Backend& backend, const std::vector<engine_dir::Check>& checks,
          const std::function<void()>& beside);

    const engine_dir::EngineDir& config() const noexcept { return config_; }
    backend::Memory& memory() const noexcept { return backend_.memory(); }

    /// The session of a component; EngineDirError if the chain has none.
    backend::Session& session(const std::string& role, std::optional<std::int64_t> segment = {}) const;

    /// The backend's decode step of a whole decoder over a cache.
    std::unique_ptr<backend::Step> step(backend::Cache& cache) const;

    /// Features of images.
    std::vector<Features> look(const std::vector<const images::Prepared*>& images) const;

    /// Embeddings [T, D] of ids; the embedding of an image placeholder has no meaning.
    ///
    /// \param name  Function of an id to the token's text, for the message.
    /// \throws InputError  for a token without an embedding in the model.
    Tensor embed(const Ids& ids, const std::function<std::string(std::int64_t)>& name) const;

  private:
    std::vector<Features> look_packed(const std::vector<const images::Prepared*>& images) const;
    Tensor rows(const std::vector<Tensors>& runs, const std::string& name, std::int64_t first, std::int64_t count,
                std::int64_t size) const;
    Features pack(Tensors rows, const std::shared_ptr<const images::TokenPlan>& plan) const;

    const engine_dir::EngineDir& config_;
    backend::Backend& backend_;
    DType dtype_;
    std::map<engine_dir::Part, std::unique_ptr<backend::Session>> sessions_;
};

}  // namespace trtprune::runtime
