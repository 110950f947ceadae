#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

/// A GPU made of host memory: strict about addresses, and as late as a real one.
///
/// Work that is asked for is queued and done only when someone waits.  So a copy to the host that is read too early is
/// seen to be unread, page-locked memory that is overwritten too early arrives overwritten, and a recorded graph works
/// on what its buffers hold when it is launched.  Fresh memory is full of 0xFF, which is NaN in every float.  As in
/// CUDA any thread may call, and a recording forbids nothing to the others.
namespace standin {

constexpr std::size_t alignment = 256;

/// Ends the process with a message: the library did what a real GPU would punish at some other time.
[[noreturn]] void die(const std::string& message);

/// A number from the environment.
std::int64_t setting(const char* name, std::int64_t otherwise);
/// A text from the environment.
std::string setting(const char* name, const char* otherwise);

class Device {
  public:
    static Device& instance();

    std::int64_t total() const { return total_; }
    std::int64_t used() const {
        const std::lock_guard<std::recursive_mutex> lock(mutex_);
        return used_;
    }

    /// NULL if there is not enough.
    void* allocate(std::size_t nbytes);
    void free(void* address);
    void* allocate_host(std::size_t nbytes);
    void free_host(void* address);
    /// Whether memory is page-locked.
    bool pinned(const void* address) const;
    /// Device memory, which must lie in one living allocation.
    std::byte* view(const void* address, std::size_t nbytes);

    /// Queues work.
    ///
    /// \param recordable  Whether it may be in a graph; the first run of a context may not.
    void push(std::function<void()> work, bool recordable = true);
    void synchronize();
    void begin_capture();
    std::vector<std::function<void()>>* end_capture();
    void launch(const std::vector<std::function<void()>>& graph);
    /// Whether this thread records.
    bool recording() const;

    /// Writes counts as JSON to the file that the environment names.
    void report() const;

  private:
    Device();

    // Recursive, since work that is done asks for its memory.
    mutable std::recursive_mutex mutex_;
    std::int64_t total_;
    std::int64_t used_ = 0;
    std::map<std::uintptr_t, std::size_t> blocks_;
    std::map<std::uintptr_t, std::size_t> pinned_;
    std::vector<std::function<void()>> queue_;
    std::vector<std::function<void()>> recorded_;
    std::thread::id recorder_;
    std::int64_t allocations_ = 0;
    std::int64_t recordings_ = 0;
    std::int64_t launches_ = 0;
    std::int64_t waits_ = 0;
};

}  // namespace standin
