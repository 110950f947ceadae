#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

/// One device and one stream of CUDA, as far as the TensorRT runtime needs them; the twin of `cuda.py`.
///
/// All work goes to one stream and runs in order; the host waits only where it reads.  The CUDA runtime is loaded when
/// a device is opened, so that a program runs without it where it uses no GPU.
namespace trtprune::backend::tensorrt {

/// A recorded CUDA graph, ready to launch; must not outlive its driver.
class Graph {
  public:
    virtual ~Graph() = default;
    virtual void launch() = 0;
};

/// A GPU.  Sizes are bytes.
class Driver {
  public:
    /// \param device_id  The number of the GPU.
    /// \throws BackendError  if the CUDA runtime or the GPU is missing.
    explicit Driver(int device_id);
    ~Driver();
    Driver(const Driver&) = delete;
    Driver& operator=(const Driver&) = delete;

    const std::string& device_name() const noexcept { return name_; }
    /// Compute capability, major and minor.
    std::pair<int, int> capability() const noexcept { return capability_; }
    /// The compute capability as `sm90`.
    std::string sm() const;
    cudaStream_t stream() const noexcept { return stream_; }

    /// Makes the device the current one: each thread has its own current device, and other libraries change it.
    void enter();
    /// Bytes free and bytes in all.
    std::pair<std::int64_t, std::int64_t> memory_info();
    /// New device memory, aligned to 256 bytes; NULL if there is not enough.
    void* allocate(std::int64_t nbytes);
    /// Frees memory, after the work that uses it.
    void free(void* address) noexcept;
    /// Page-locked host memory, which the device reads and writes without the host waiting.
    std::shared_ptr<std::byte> allocate_host(std::int64_t nbytes);
    /// Copies from the host; the source may be changed at once, unless it is page-locked.
    void to_device(void* target, const void* source, std::int64_t nbytes);
    /// Copies to the host; done only after `synchronize`.
    void to_host(void* target, const void* source, std::int64_t nbytes);
    void on_device(void* target, const void* source, std::int64_t nbytes);
    /// Sets bytes to 0.
    void clear(void* target, std::int64_t nbytes);
    /// Waits for all work on the stream; failures on the device since the last time are thrown here.
    void synchronize();
    /// Records the work that `work` puts on the stream, without running it.
    std::unique_ptr<Graph> record(const std::function<void()>& work);

    struct Library;

  private:
    friend class RecordedGraph;
    void check(const char* what, cudaError_t status);
    std::string text_of(cudaError_t status) const;
    void copy(void* target, const void* source, std::int64_t nbytes, cudaMemcpyKind kind);

    std::shared_ptr<Library> cuda_;
    int id_;
    std::string name_;
    std::pair<int, int> capability_{};
    cudaStream_t stream_ = nullptr;
};

}  // namespace trtprune::backend::tensorrt
