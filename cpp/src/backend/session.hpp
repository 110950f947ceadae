#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/tensor.hpp"

namespace trtprune {
struct LoadOptions;
}

namespace trtprune::engine_dir {
struct ComponentInfo;
struct EngineDir;
}  // namespace trtprune::engine_dir

namespace trtprune::backend {

/// The memory of a backend's arrays, and the few operations on them outside of graphs.
///
/// Arrays of a device are written when its stream reaches the work; the order of calls is the order of the work.
class Memory {
  public:
    virtual ~Memory() = default;

    /// The pieces [n, D] of each row behind one another, followed by zeros: [rows, width, D].  Pieces may be on either
    /// side.
    virtual Tensor join(const std::vector<std::vector<Tensor>>& rows, std::int64_t width) = 0;
    /// The pieces [n, ...], at least one, behind one another along the first axis; a single one as it is.
    virtual Tensor concatenate(const std::vector<Tensor>& pieces) = 0;
    /// Rows of the first axis by their numbers; a view where they follow one another, else a copy.
    virtual Tensor take(const Tensor& array, const std::vector<std::int64_t>& rows) = 0;
    /// The array on the host, complete: a host array as it is, else a copy.
    virtual Tensor to_host(const Tensor& array) = 0;
    /// Returns when all requested work is done; a device works asynchronously.
    virtual void wait() = 0;
};

/// The KV cache of one batch in one session: a buffer for each cache input, which the session binds as input and as
/// output, so that a run writes its rows in place.
class Cache {
  public:
    virtual ~Cache() = default;

    virtual std::int64_t batch() const = 0;
    /// Tokens of a row.
    virtual std::int64_t capacity() const = 0;
    virtual std::int64_t nbytes() const = 0;
};

/// One graph, ready to run.
class Session {
  public:
    virtual ~Session() = default;

    /// Runs the graph.
    ///
    /// \param inputs  All inputs but the cache, by name, in the graph's types; on the host or in the backend's memory.
    /// \param cache   From `new_cache`; read and updated in place.  NULL for a graph without one.
    /// \return        All outputs but the cache, in the backend's memory.
    /// \throws BackendError             for an input that does not fit, or a failure inside the library.
    /// \throws InputError, BudgetError  for a call beyond an engine's limits.
    virtual Tensors run(const Tensors& inputs, Cache* cache = nullptr) = 0;

    /// Buffers of zeros for `batch` rows of at least `capacity` tokens.
    ///
    /// \param reuse  A cache of this session that is no longer used, or NULL; its memory is taken if it fits.
    /// \throws BackendError  if there is no memory for them.
    virtual std::unique_ptr<Cache> new_cache(std::int64_t batch, std::int64_t capacity,
                                             std::unique_ptr<Cache> reuse = nullptr) = 0;
    /// A cache of `capacity` tokens that begins with the content of `cache`.
    virtual std::unique_ptr<Cache> grow_cache(std::unique_ptr<Cache> cache, std::int64_t capacity) = 0;

    /// The largest number of rows of one run.
    virtual std::int64_t max_batch() const = 0;
    /// Tokens that a row of its caches holds, where that is fixed, as in an engine; not set: as `new_cache` is asked.
    virtual std::optional<std::int64_t> capacity() const = 0;
};

/// One step of an answer: the last token of each row as input, the logits of its next token as output.
class Step {
  public:
    virtual ~Step() = default;

    /// Runs it.
    ///
    /// \param token        [B], ids.
    /// \param position     [B, axes].
    /// \param write_index  [B], the token's place in the cache.
    /// \return             Logits float32 [B, V] on the host, which the next call may overwrite.
    virtual Tensor run(const std::vector<std::int64_t>& token, const std::vector<std::int64_t>& position,
                       const std::vector<std::int64_t>& write_index) = 0;
};

/// Opens the components of an engine directory.  Outlives what it opens.
class Backend {
  public:
    virtual ~Backend() = default;

    /// `cpu`, `cuda` or `tensorrt`.
    virtual const std::string& name() const = 0;
    virtual Memory& memory() = 0;

    /// Opens one component.
    ///
    /// \param root  The engine directory.
    /// \throws BackendError    if the library cannot run it.
    /// \throws EngineDirError  if its file cannot be read or has other tensors than `config.json`.
    virtual std::unique_ptr<Session> session(const engine_dir::ComponentInfo& component,
                                             const std::filesystem::path& root) = 0;

    /// The number of threads that may open components at the same time.
    virtual int opening_threads() const { return 1; }

    /// The decode step of a whole decoder over one cache, from two sessions of this backend; everything between token
    /// and logits stays on its device.  None of the three may go before it.
    virtual std::unique_ptr<Step> step(Session& embed, Session& decoder, Cache& cache) = 0;
};

/// The backend of a directory, or the one of `options.provider`; never another one in its place.
///
/// \throws BackendError  if it is missing or cannot run the directory.
std::unique_ptr<Backend> open_backend(const engine_dir::EngineDir& config, const LoadOptions& options);

}  // namespace trtprune::backend
