#include "device.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace standin {

namespace {

constexpr int unwritten = 0xFF;

bool contains(const std::map<std::uintptr_t, std::size_t>& blocks, const void* address, std::size_t nbytes) {
    const auto place = reinterpret_cast<std::uintptr_t>(address);
    auto next = blocks.upper_bound(place);
    if (next == blocks.begin()) return false;
    const auto& [start, size] = *--next;
    return place + nbytes <= start + size;
}

void* aligned_block(std::size_t nbytes) {
    void* address = std::aligned_alloc(alignment, (nbytes + alignment - 1) / alignment * alignment);
    if (address == nullptr) die("the host has no memory");
    std::memset(address, unwritten, nbytes);
    return address;
}

}  // namespace

void die(const std::string& message) {
    std::fprintf(stderr, "stand-in: %s\n", message.c_str());
    std::abort();
}

std::int64_t setting(const char* name, std::int64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::atoll(text);
}

std::string setting(const char* name, const char* otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : text;
}

Device& Device::instance() {
    static auto* device = new Device();
    return *device;
}

Device::Device() : total_(setting("STANDIN_MEMORY", std::int64_t{1} << 30)) {
    std::atexit([] { instance().report(); });
}

void* Device::allocate(std::size_t nbytes) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (recording()) die("allocation inside of a recording");
    if (nbytes == 0) die("allocation of nothing");
    if (used_ + static_cast<std::int64_t>(nbytes) > total_) return nullptr;
    void* address = aligned_block(nbytes);
    blocks_[reinterpret_cast<std::uintptr_t>(address)] = nbytes;
    used_ += static_cast<std::int64_t>(nbytes);
    ++allocations_;
    return address;
}

void Device::free(void* address) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (recording()) die("freeing inside of a recording");
    synchronize();
    const auto block = blocks_.find(reinterpret_cast<std::uintptr_t>(address));
    if (block == blocks_.end()) die("freeing what was not allocated");
    used_ -= static_cast<std::int64_t>(block->second);
    std::memset(address, unwritten, block->second);
    blocks_.erase(block);
    std::free(address);
}

void* Device::allocate_host(std::size_t nbytes) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    void* address = aligned_block(nbytes);
    pinned_[reinterpret_cast<std::uintptr_t>(address)] = nbytes;
    return address;
}

void Device::free_host(void* address) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (pinned_.erase(reinterpret_cast<std::uintptr_t>(address)) == 0) die("freeing what is not page-locked");
    std::free(address);
}

bool Device::pinned(const void* address) const {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    return contains(pinned_, address, 1);
}

std::byte* Device::view(const void* address, std::size_t nbytes) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (!contains(blocks_, address, nbytes)) die(std::to_string(nbytes) + " bytes lie in no allocation");
    return static_cast<std::byte*>(const_cast<void*>(address));
}

bool Device::recording() const {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    return recorder_ == std::this_thread::get_id();
}

void Device::push(std::function<void()> work, bool recordable) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    // What cannot be recorded must have been done before: contexts load and compile in their first run.
    if (recording() && !recordable) die("the first run of a context cannot be recorded");
    (recording() ? recorded_ : queue_).push_back(std::move(work));
}

void Device::synchronize() {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (recording()) die("waiting inside of a recording");
    ++waits_;
    std::vector<std::function<void()>> queue;
    queue.swap(queue_);
    for (const auto& work : queue) work();
}

void Device::begin_capture() {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (recorder_ != std::thread::id()) die("a recording inside of a recording");
    recorder_ = std::this_thread::get_id();
}

std::vector<std::function<void()>>* Device::end_capture() {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    recorder_ = std::thread::id();
    ++recordings_;
    auto* graph = new std::vector<std::function<void()>>();
    graph->swap(recorded_);
    return graph;
}

void Device::launch(const std::vector<std::function<void()>>& graph) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    ++launches_;
    queue_.insert(queue_.end(), graph.begin(), graph.end());
}

void Device::report() const {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    const std::string path = setting("STANDIN_REPORT", "");
    if (path.empty()) return;
    std::FILE* file = std::fopen(path.c_str(), "w");
    if (file == nullptr) return;
    std::fprintf(file,
                 "{\"allocations\": %lld, \"blocks\": %zu, \"pinned\": %zu, \"recordings\": %lld, \"launches\": %lld, "
                 "\"waits\": %lld}\n",
                 static_cast<long long>(allocations_), blocks_.size(), pinned_.size(),
                 static_cast<long long>(recordings_), static_cast<long long>(launches_),
                 static_cast<long long>(waits_));
    std::fclose(file);
}

}  // namespace standin
