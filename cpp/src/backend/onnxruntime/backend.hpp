#pragma once

#include <map>
#include <memory>
#include <string>

#include "backend/host.hpp"
#include "backend/onnxruntime/library.hpp"
#include "backend/session.hpp"

/// ONNX Runtime: its CPU and CUDA providers.
///
/// The requested provider runs, or there is an error: never another one in silence.
namespace trtprune::backend::onnxruntime {

/// Opens graphs in ONNX Runtime.
class OrtBackend : public Backend {
  public:
    /// \param provider  `cpu` or `cuda`.
    /// \param threads   Threads inside one operator; 0: all that the container allows.
    /// \param options   Options of the provider.  `cpu`: `activations` = `int8` (default) or `float32`, for graphs with
    ///                  quantised weights; see `trtprune.backends.onnxruntime.OrtBackend` in the Python package.
    ///                  `cuda`: `device_id`, `gpu_mem_limit`.
    /// \param library   See `Library`.
    /// \throws BackendError  if the library or the provider is missing, or an argument is unknown.
    OrtBackend(const std::string& provider, int threads, const std::map<std::string, std::string>& options,
               const std::string& library);

    const std::string& name() const override { return name_; }
    Memory& memory() override { return memory_; }
    std::unique_ptr<Session> session(const engine_dir::ComponentInfo& component,
                                     const std::filesystem::path& root) override;
    int opening_threads() const override;
    std::unique_ptr<Step> step(Session& embed, Session& decoder, Cache& cache) override;

  private:
    SessionOptions session_options(const engine_dir::ComponentInfo& component, const std::string& folder,
                                   const std::string& path) const;
    void add_provider(OrtSessionOptions* options, const std::string& path) const;
    void add_entry(OrtSessionOptions* options, const char* key, const std::string& value) const;

    std::string name_;
    int threads_;
    std::map<std::string, std::string> options_;
    HostMemory memory_;
    std::shared_ptr<const Library> library_;
};

}  // namespace trtprune::backend::onnxruntime
