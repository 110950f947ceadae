#pragma once

#include <memory>
#include <vector>

#include "backend/session.hpp"
#include "backend/tensorrt/cuda.hpp"

/// Arrays in device memory, and the allocation of that memory; the twin of `memory.py`.
///
/// Freed memory is kept for the next array of about the same size: after the first answer nothing is allocated.  All
/// work is on one stream, so memory can be reused before the work that uses it is done.  Any thread may free an array;
/// everything else belongs to the thread of the call.
namespace trtprune::backend::tensorrt {

/// Alignment of every bound address, in bytes: TensorRT requires it, and cudaMalloc provides it.
constexpr std::int64_t alignment = 256;
/// A larger block is freed at once: such blocks are mostly caches, which seldom change size.
constexpr std::int64_t keep_bytes = std::int64_t{64} << 20;

/// The next multiple of `step`.
constexpr std::int64_t round_up(std::int64_t size, std::int64_t step) {
    return (size + step - 1) / step * step;
}

/// Bytes to allocate for `nbytes`: up to an eighth more, so that few sizes serve all prompt lengths.
std::int64_t block_size(std::int64_t nbytes);

/// See `Memory`.  Arrays keep what they need of it alive.
class DeviceMemory : public Memory {
  public:
    explicit DeviceMemory(std::shared_ptr<Driver> driver);
    ~DeviceMemory() override;

    Driver& driver() noexcept { return *driver_; }

    /// An array of undefined content.
    ///
    /// \throws BackendError  if the device has no memory left.
    Tensor empty(DType dtype, const Shape& shape);
    Tensor zeros(DType dtype, const Shape& shape);
    /// A copy of a host array; a device array as it is.
    Tensor upload(const Tensor& array);
    /// The array, or a copy of it if a view is not aligned.
    Tensor aligned(const Tensor& array);
    /// The memory `offset` bytes behind the first element, as another array.
    static Tensor view(const Tensor& array, DType dtype, const Shape& shape, std::int64_t offset = 0);

    Tensor join(const std::vector<std::vector<Tensor>>& rows, std::int64_t width) override;
    Tensor concatenate(const std::vector<Tensor>& pieces) override;
    Tensor take(const Tensor& array, const std::vector<std::int64_t>& rows) override;
    Tensor to_host(const Tensor& array) override;
    void wait() override { driver_->synchronize(); }

  private:
    class Pool;
    void append(std::byte*& target, const Tensor& piece);

    std::shared_ptr<Driver> driver_;
    std::shared_ptr<Pool> pool_;
};

}  // namespace trtprune::backend::tensorrt
