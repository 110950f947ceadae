#include "backend/tensorrt/memory.hpp"

#include <cstdio>
#include <map>
#include <mutex>
#include <trtprune/error.hpp>

namespace trtprune::backend::tensorrt {

std::int64_t block_size(std::int64_t nbytes) {
    if (nbytes <= 2048) return round_up(std::max<std::int64_t>(nbytes, 1), alignment);
    std::int64_t power = 1;
    while (power < nbytes) power *= 2;
    return round_up(nbytes, std::max(alignment, power / 16));
}

/// Blocks that are free, by their size.
///
/// A thread that ends a conversation gives its arrays back while another thread's call takes some.
class DeviceMemory::Pool {
  public:
    explicit Pool(std::shared_ptr<Driver> device) : driver_(std::move(device)) {}
    ~Pool() { release(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    void* take(std::int64_t size) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (auto& blocks = free_[size]; !blocks.empty()) {
            void* address = blocks.back();
            blocks.pop_back();
            return address;
        }
        void* address = driver_->allocate(size);
        if (address == nullptr) {
            release();
            address = driver_->allocate(size);
        }
        return address;
    }

    void give_back(void* address, std::int64_t size) noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (size <= keep_bytes && !closed_) {
            try {
                free_[size].push_back(address);
                return;
            } catch (const std::bad_alloc&) {  // no room to remember the block: freed at once
            }
        }
        driver_->free(address);
    }

    /// From now on, what is given back is freed.
    void close() noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        closed_ = true;
        release();
    }

  private:
    void release() noexcept {
        for (auto& [size, blocks] : free_) {
            for (void* address : blocks) driver_->free(address);
        }
        free_.clear();
    }

    std::shared_ptr<Driver> driver_;
    std::mutex mutex_;
    std::map<std::int64_t, std::vector<void*>> free_;
    bool closed_ = false;
};

DeviceMemory::DeviceMemory(std::shared_ptr<Driver> driver)
    : driver_(std::move(driver)), pool_(std::make_shared<Pool>(driver_)) {}

DeviceMemory::~DeviceMemory() {
    // Arrays that live on give their memory to the device, not to a pool that nobody uses any more.
    pool_->close();
}

Tensor DeviceMemory::empty(DType dtype, const Shape& shape) {
    const std::int64_t size = block_size(volume(shape) * item_size(dtype));
    void* address = pool_->take(size);
    if (address == nullptr) {
        char text[128];
        std::snprintf(text, sizeof text, "no memory on the GPU for %.0f MB more; %.0f MB are free",
                      static_cast<double>(size) / 1e6, static_cast<double>(driver_->memory_info().first) / 1e6);
        throw BackendError(text, "a smaller batch or --keep, or build with a smaller --max-seq-len");
    }
    std::shared_ptr<void> owner(address, [pool = pool_, size](void* block) { pool->give_back(block, size); });
    return Tensor(dtype, shape, std::move(owner), address, Place::device);
}

Tensor DeviceMemory::zeros(DType dtype, const Shape& shape) {
    Tensor array = empty(dtype, shape);
    driver_->clear(array.address(), array.nbytes());
    return array;
}

Tensor DeviceMemory::upload(const Tensor& array) {
    if (array.place() == Place::device) return array;
    Tensor copy = empty(array.dtype(), array.shape());
    driver_->to_device(copy.address(), array.address(), array.nbytes());
    return copy;
}

Tensor DeviceMemory::aligned(const Tensor& array) {
    if (reinterpret_cast<std::uintptr_t>(array.address()) % alignment == 0) return array;
    Tensor copy = empty(array.dtype(), array.shape());
    driver_->on_device(copy.address(), array.address(), array.nbytes());
    return copy;
}

Tensor DeviceMemory::view(const Tensor& array, DType dtype, const Shape& shape, std::int64_t offset) {
    // The view keeps its array, and thereby the block, alive.
    auto owner = std::make_shared<Tensor>(array);
    return Tensor(dtype, shape, owner, static_cast<std::byte*>(array.address()) + offset, array.place());
}

void DeviceMemory::append(std::byte*& target, const Tensor& piece) {
    // Pieces on the host come from callers that build the rows themselves.
    if (piece.place() == Place::host) {
        driver_->to_device(target, piece.address(), piece.nbytes());
    } else {
        driver_->on_device(target, piece.address(), piece.nbytes());
    }
    target += piece.nbytes();
}

Tensor DeviceMemory::join(const std::vector<std::vector<Tensor>>& rows, std::int64_t width) {
    const Tensor& first = rows.at(0).at(0);
    const std::int64_t columns = first.shape().at(1);
    Tensor joined = empty(first.dtype(), {static_cast<std::int64_t>(rows.size()), width, columns});
    const std::int64_t row_bytes = width * columns * item_size(first.dtype());
    auto* begin = static_cast<std::byte*>(joined.address());
    for (const auto& pieces : rows) {
        std::byte* target = begin;
        for (const Tensor& piece : pieces) append(target, piece);
        if (target < begin + row_bytes) driver_->clear(target, begin + row_bytes - target);
        begin += row_bytes;
    }
    return joined;
}

Tensor DeviceMemory::concatenate(const std::vector<Tensor>& pieces) {
    if (pieces.size() == 1) return pieces.front();
    Shape shape = pieces.at(0).shape();
    shape.at(0) = 0;
    for (const Tensor& piece : pieces) shape[0] += piece.length();
    Tensor joined = empty(pieces.front().dtype(), shape);
    auto* target = static_cast<std::byte*>(joined.address());
    for (const Tensor& piece : pieces) append(target, piece);
    return joined;
}

Tensor DeviceMemory::take(const Tensor& array, const std::vector<std::int64_t>& rows) {
    // Runs of rows that follow one another, as [begin, end).
    std::vector<std::pair<std::int64_t, std::int64_t>> runs;
    for (const std::int64_t row : rows) {
        if (row < 0 || row >= array.length()) {
            throw BackendError("row " + std::to_string(row) + " of " + std::to_string(array.length()));
        }
        if (!runs.empty() && runs.back().second == row) {
            ++runs.back().second;
        } else {
            runs.emplace_back(row, row + 1);
        }
    }
    if (runs.size() == 1) return array.slice(runs[0].first, runs[0].second);
    Shape shape = array.shape();
    shape.at(0) = static_cast<std::int64_t>(rows.size());
    Tensor taken = empty(array.dtype(), shape);
    auto* target = static_cast<std::byte*>(taken.address());
    for (const auto& [begin, end] : runs) append(target, array.slice(begin, end));
    return taken;
}

Tensor DeviceMemory::to_host(const Tensor& array) {
    if (array.place() == Place::host) return array;
    Tensor copy = Tensor::empty(array.dtype(), array.shape());
    driver_->to_host(copy.address(), array.address(), array.nbytes());
    driver_->synchronize();
    return copy;
}

}  // namespace trtprune::backend::tensorrt
