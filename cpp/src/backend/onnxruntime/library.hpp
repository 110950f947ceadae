#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>

#include "backend/tensor.hpp"

namespace trtprune::backend::onnxruntime {

/// ONNX Runtime, loaded from a shared library at run time.
///
/// The library is never linked: its symbols carry its version, so a linked program would run with one release only.
class Library {
  public:
    /// \param path  The library's file; empty: `$TRTPRUNE_ONNXRUNTIME`, or the system's `libonnxruntime.so.1`.
    /// \throws BackendError  if it is missing, is something else, or is too old for the graphs.
    explicit Library(const std::string& path);
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;
    ~Library();

    const OrtApi& api() const noexcept { return *api_; }
    OrtEnv* env() const noexcept { return env_; }
    /// Memory of the host.
    OrtMemoryInfo* host() const noexcept { return host_; }
    /// Whether it was built with a provider, such as `CUDAExecutionProvider`.
    bool has_provider(const std::string& name) const;

    /// Takes a call's status.
    ///
    /// \param prefix  Begins the message of the error.
    /// \throws BackendError  if the call failed, with the first line of the reason.
    void check(OrtStatus* status, const std::string& prefix = "ONNX Runtime: ", const std::string& hint = {}) const;

    /// A tensor of ONNX Runtime over an array's memory, which must outlive it.
    OrtValue* view(const Tensor& array) const;

  private:
    void* handle_ = nullptr;
    const OrtApi* api_ = nullptr;
    OrtEnv* env_ = nullptr;
    OrtMemoryInfo* host_ = nullptr;
};

/// Frees an object of ONNX Runtime by the function of its type.
template <typename T>
struct Release {
    void (*release)(T*) = nullptr;
    void operator()(T* object) const { release(object); }
};

using Value = std::unique_ptr<OrtValue, Release<OrtValue>>;
using SessionOptions = std::unique_ptr<OrtSessionOptions, Release<OrtSessionOptions>>;
using SessionHandle = std::unique_ptr<OrtSession, Release<OrtSession>>;

ONNXTensorElementDataType element_type(DType dtype);
/// \throws BackendError  for a type that no graph of this project has.
DType dtype_of(ONNXTensorElementDataType type);

}  // namespace trtprune::backend::onnxruntime
