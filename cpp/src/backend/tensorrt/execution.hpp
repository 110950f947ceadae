#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>

#include "backend/tensorrt/library.hpp"
#include "backend/tensorrt/memory.hpp"

/// An engine's execution contexts: shapes and addresses in, work on the stream out; the twin of `execution.py`.
///
/// Contexts have no memory of their own for activations.  Engines run one after another, so one workspace of the
/// largest size among them serves all.
namespace trtprune::backend::tensorrt {

/// Address and shape of a tensor; the address is on the host if the tensor's values decide shapes.
struct Binding {
    void* address;
    Shape shape;
};
using Bindings = std::map<std::string, Binding, std::less<>>;

/// Device memory for activations, shared by contexts that never run at the same time.
class Workspace {
  public:
    explicit Workspace(DeviceMemory& memory) : memory_(memory) {}

    /// Provides at least `nbytes` for a context.
    void reserve(std::int64_t nbytes);
    std::int64_t nbytes() const noexcept { return nbytes_; }
    /// Changes with the address: contexts with the old one must not run any more.
    int generation() const noexcept { return generation_; }
    /// The memory, which is allocated at the first access.
    void* address();

  private:
    DeviceMemory& memory_;
    Tensor array_;
    std::int64_t nbytes_ = alignment;
    int generation_ = 0;
};

class Context;

/// A loaded engine.  Its contexts keep it.
class Engine : public std::enable_shared_from_this<Engine> {
  public:
    /// \param name  The component, for messages.
    Engine(std::unique_ptr<nvinfer1::ICudaEngine> engine, std::string name, DeviceMemory& memory, Workspace& workspace);

    const std::set<std::string, std::less<>>& inputs() const noexcept { return inputs_; }
    const std::set<std::string, std::less<>>& outputs() const noexcept { return outputs_; }
    /// Inputs whose values decide shapes, so that TensorRT reads them on the host before any kernel runs.
    const std::set<std::string, std::less<>>& on_host() const noexcept { return on_host_; }
    int profiles() const noexcept { return profiles_; }
    const std::string& name() const noexcept { return name_; }
    DeviceMemory& memory() noexcept { return memory_; }
    Workspace& workspace() noexcept { return workspace_; }

    /// A context for one profile.
    ///
    /// \throws BackendError  if TensorRT does not create one.
    std::unique_ptr<Context> context(int profile);

  private:
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::string name_;
    DeviceMemory& memory_;
    Workspace& workspace_;
    std::set<std::string, std::less<>> inputs_;
    std::set<std::string, std::less<>> outputs_;
    std::set<std::string, std::less<>> on_host_;
    int profiles_;
};

/// An execution context; its bindings stay until they are set again.
class Context {
  public:
    Context(std::shared_ptr<Engine> engine, std::unique_ptr<nvinfer1::IExecutionContext> context)
        : engine_(std::move(engine)), context_(std::move(context)) {}

    /// Sets shapes and addresses of all tensors.
    ///
    /// \throws BackendError  if TensorRT refuses one, or would write a shape that does not fit the memory.
    void bind(const Bindings& inputs, const Bindings& outputs);
    /// Puts one run on the stream.
    ///
    /// \throws BackendError  with TensorRT's reason.
    void enqueue();

  private:
    [[noreturn]] void fail(const std::string& what, const std::string& why) const;

    std::shared_ptr<Engine> engine_;  // before the context, which must be freed first
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    int generation_ = -1;
};

}  // namespace trtprune::backend::tensorrt
