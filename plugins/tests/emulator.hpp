// Runs a kernel's body on the CPU, thread by thread, and refuses what a GPU would let pass.
//
// Every CUDA thread is a fiber.  A fiber runs until it waits for its block or its warp; then another one is drawn at
// random (by seed).  Memory is checked on every access:
//
//   shared   out of bounds, misaligned, read before written, and races: two threads at one place with no barrier
//            between them, at least one of them writing (additions among themselves excepted)
//   global   out of bounds, misaligned, written twice in a launch, and cached reads (`load`) of what a launch may write
//   control  lanes of a warp in different warp functions, barriers that not all threads of the block reach
//
// The first finding ends the launch and is thrown as Failure.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace trtprune::emulator {

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Global memory that a launch may touch.
class Memory {
  public:
    void readable(const void* base, int64_t bytes) { regions_.push_back({address(base), bytes, {}, false}); }
    void writable(void* base, int64_t bytes) {
        regions_.push_back({address(base), bytes, std::vector<bool>(static_cast<size_t>(bytes)), true});
    }

    template <class T> void check_read(const T* at, bool cached) {
        const Region& region = find(at, sizeof(T), "read");
        if (cached && region.may_be_written) throw Failure("cached read of memory that the launch writes");
    }
    template <class T> void check_write(T* at) {
        Region& region = find(at, sizeof(T), "write");
        if (!region.may_be_written) throw Failure("write to read-only memory");
        const auto offset = static_cast<size_t>(address(at) - region.begin);
        for (size_t i = offset; i < offset + sizeof(T); ++i) {
            if (region.written[i]) throw Failure("global memory written twice");
            region.written[i] = true;
        }
    }

  private:
    struct Region {
        uintptr_t begin;
        int64_t bytes;
        std::vector<bool> written;
        bool may_be_written;
    };
    static uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

    Region& find(const void* at, size_t size, const char* what) {
        if (address(at) % size != 0) throw Failure(std::string("misaligned global ") + what);
        for (Region& region : regions_) {
            if (address(at) >= region.begin &&
                address(at) + size <= region.begin + static_cast<uintptr_t>(region.bytes))
                return region;
        }
        throw Failure(std::string("global ") + what + " out of bounds");
    }
    std::vector<Region> regions_;
};

/// Shared memory of one block, with what is known of every two bytes of it.
class SharedMemory {
  public:
    explicit SharedMemory(int64_t bytes)
        : bytes_(static_cast<size_t>(bytes)), cells_(static_cast<size_t>(bytes) / 2 + 1) {}
    void next_epoch() { ++epoch_; }

    template <class T> T read(int64_t offset, int thread) {
        visit<T>(offset, [&](Cell& cell) {
            if (cell.writer == kNobody) throw Failure("shared memory read before it is written");
            if (cell.write_epoch == epoch_ && cell.writer != thread)
                throw Failure("shared memory race: write and read");
            cell.reader = cell.read_epoch == epoch_ && cell.reader != thread ? kSeveral : thread;
            cell.read_epoch = epoch_;
        });
        T value;
        std::memcpy(&value, &bytes_[static_cast<size_t>(offset)], sizeof(T));
        return value;
    }
    template <class T> void write(int64_t offset, int thread, T value, bool addition = false) {
        visit<T>(offset, [&](Cell& cell) {
            if (addition && cell.writer == kNobody) throw Failure("shared memory added to before it is written");
            if (cell.read_epoch == epoch_ && cell.reader != thread) throw Failure("shared memory race: read and write");
            const bool other = cell.write_epoch == epoch_ && cell.writer != thread;
            if (other && !(addition && cell.addition)) throw Failure("shared memory race: two writes");
            cell.writer = other ? kSeveral : thread;
            cell.write_epoch = epoch_;
            cell.addition = addition;
        });
        std::memcpy(&bytes_[static_cast<size_t>(offset)], &value, sizeof(T));
    }
    void add(int64_t offset, int thread, uint32_t value) {
        uint32_t sum = 0;
        if (offset >= 0 && offset + 4 <= size()) std::memcpy(&sum, &bytes_[static_cast<size_t>(offset)], 4);
        write<uint32_t>(offset, thread, sum + value, true);
    }

  private:
    static constexpr int kNobody = -1, kSeveral = -2;
    struct Cell {
        int writer = kNobody, reader = kNobody;
        int64_t write_epoch = -1, read_epoch = -1;
        bool addition = false;
    };
    int64_t size() const { return static_cast<int64_t>(bytes_.size()); }

    template <class T, class Visit> void visit(int64_t offset, const Visit& check) {
        static_assert(sizeof(T) % 2 == 0, "two bytes at least");
        if (offset < 0 || offset + static_cast<int64_t>(sizeof(T)) > size())
            throw Failure("shared memory out of bounds");
        if (offset % static_cast<int64_t>(sizeof(T)) != 0) throw Failure("misaligned shared memory access");
        for (size_t i = 0; i < sizeof(T) / 2; ++i) check(cells_[static_cast<size_t>(offset) / 2 + i]);
    }
    std::vector<unsigned char> bytes_;
    std::vector<Cell> cells_;
    int64_t epoch_ = 0;
};

/// One block of threads at work.
class Machine {
  public:
    Machine(int threads, int64_t shared_bytes, Memory& memory, uint64_t seed)
        : shared(shared_bytes),
          memory(memory),
          threads_(threads),
          random_(seed * 2 + 1),
          fibers_(pool(threads)),
          warps_(static_cast<size_t>(threads) / 32) {}

    /// Runs body(thread) for every thread.
    void run(const std::function<void(int)>& body) {
        body_ = &body;
        for (int t = 0; t < threads_; ++t) {
            Fiber& fiber = fibers_[static_cast<size_t>(t)];
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = kStack;
            fiber.context.uc_link = nullptr;
            fiber.started = false;
            const auto self = reinterpret_cast<uintptr_t>(this);
            makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Machine::enter), 2,
                        static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
            ready_.push_back(t);
        }
        while (true) {
            while (!ready_.empty()) {
                std::swap(ready_[next_random() % ready_.size()], ready_.back());
                thread = ready_.back();
                ready_.pop_back();
                resume(fibers_[static_cast<size_t>(thread)]);
                if (!failure_.empty()) throw Failure(failure_);
            }
            if (finished_ == threads_) return;
            if (static_cast<int>(at_barrier_.size()) != threads_) {
                throw Failure("a barrier or warp function that not all of its threads reach");
            }
            shared.next_epoch();
            ready_.swap(at_barrier_);
        }
    }

    void sync() {
        at_barrier_.push_back(thread);
        yield();
    }

    /// The values of all lanes of the warp, once all of them are in the same `operation`.
    const std::array<uint64_t, 32>& exchange(int operation, uint64_t value) {
        Warp& warp = warps_[static_cast<size_t>(thread) / 32];
        if (warp.arrived > 0 && warp.operation != operation) {
            throw Failure("lanes of a warp are in different warp functions");
        }
        warp.operation = operation;
        warp.incoming[static_cast<size_t>(thread) % 32] = value;
        warp.waiting[static_cast<size_t>(warp.arrived++)] = thread;
        if (warp.arrived < 32) {
            yield();
        } else {
            // Only now, when all have arrived here, is nobody left who still reads the last exchange's values.
            warp.values = warp.incoming;
            warp.arrived = 0;
            for (int t : warp.waiting) {
                if (t != thread) ready_.push_back(t);
            }
        }
        return warp.values;
    }

    SharedMemory shared;
    Memory& memory;
    int thread = 0;

  private:
    static constexpr size_t kStack = 64 * 1024;
    struct Fiber {
        ucontext_t context;  // to begin with; from then on _longjmp, which saves swapcontext its system calls
        jmp_buf resumed;
        bool started;
        std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
    };
    struct Warp {
        int operation = 0;
        int arrived = 0;
        std::array<uint64_t, 32> incoming{}, values{};
        std::array<int, 32> waiting{};
    };

    /// Stacks are kept from run to run.
    static std::vector<Fiber>& pool(int threads) {
        thread_local std::vector<Fiber> fibers;
        if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(static_cast<size_t>(threads));
        return fibers;
    }
    static void enter(unsigned high, unsigned low) {
        auto* self = reinterpret_cast<Machine*>(static_cast<uintptr_t>(high) << 32 | low);
        try {
            (*self->body_)(self->thread);
            ++self->finished_;
        } catch (const std::exception& error) {
            self->failure_ = error.what();
        }
        _longjmp(self->scheduler_, 1);
    }
    /// Runs the fiber until it yields or ends.  All state is in members: locals are lost in the jumps.
    void resume(Fiber& fiber) {
        if (_setjmp(scheduler_) != 0) return;
        if (fiber.started) _longjmp(fiber.resumed, 1);
        fiber.started = true;
        setcontext(&fiber.context);
    }
    void yield() {
        const int self = thread;
        if (_setjmp(fibers_[static_cast<size_t>(self)].resumed) == 0) _longjmp(scheduler_, 1);
        thread = self;
    }
    uint64_t next_random() {
        random_ ^= random_ << 13;
        random_ ^= random_ >> 7;
        random_ ^= random_ << 17;
        return random_;
    }

    int threads_;
    uint64_t random_;
    std::vector<Fiber>& fibers_;
    std::vector<Warp> warps_;
    jmp_buf scheduler_{};
    const std::function<void(int)>* body_ = nullptr;
    std::vector<int> ready_, at_barrier_;
    int finished_ = 0;
    std::string failure_;
};

/// An array in shared memory.
template <class T> class SharedArray {
  public:
    struct Element {
        Machine* machine;
        int64_t offset;
        operator T() const { return machine->shared.read<T>(offset, machine->thread); }
        Element& operator=(T value) {
            machine->shared.write<T>(offset, machine->thread, value);
            return *this;
        }
    };
    SharedArray(Machine* machine, int64_t offset) : machine_(machine), offset_(offset) {}
    Element operator[](int i) const { return {machine_, at(i)}; }
    SharedArray operator+(int i) const { return {machine_, at(i)}; }
    void add(int i, int value) const { machine_->shared.add(at(i), machine_->thread, static_cast<uint32_t>(value)); }

  private:
    int64_t at(int i) const { return offset_ + i * static_cast<int64_t>(sizeof(T)); }
    Machine* machine_;
    int64_t offset_;
};

/// What CudaBlock is on a GPU (block.cuh).
template <int Threads> class HostBlock {
  public:
    static constexpr int kThreads = Threads;
    struct alignas(16) Bytes16 {
        uint64_t low, high;
    };
    HostBlock(Machine* machine, int thread, int64_t index) : machine_(machine), thread_(thread), index_(index) {}

    int thread() const { return thread_; }
    int lane() const { return thread_ % 32; }
    int warp() const { return thread_ / 32; }
    int64_t index() const { return index_; }
    void sync() const { machine_->sync(); }

    uint32_t ballot(bool value) const {
        return collect(machine_->exchange(1, value), [](uint64_t v) { return v != 0; });
    }
    uint32_t match(uint32_t value) const {
        return collect(machine_->exchange(2, value), [&](uint64_t v) { return v == value; });
    }
    template <class T> T shuffle(T value, int lane) const { return pick<T>(3, value, lane); }
    template <class T> T shuffle_up(T value, int distance) const {
        return pick<T>(100 + distance, value, lane() >= distance ? lane() - distance : lane());
    }
    template <class T> T shuffle_xor(T value, int distance) const {
        return pick<T>(200 + distance, value, lane() ^ distance);
    }
    static int first_set(uint32_t mask) { return __builtin_ffs(static_cast<int>(mask)) - 1; }
    static int count_set(uint32_t mask) { return __builtin_popcount(mask); }

    template <class T> SharedArray<T> shared(int64_t offset) const { return {machine_, offset}; }
    static uint32_t bits(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        return bits;
    }
    void add(SharedArray<uint32_t> array, int i, int value) const { array.add(i, value); }

    template <class T> T load(const void* array, int64_t i) const { return read<T>(array, i, true); }
    template <class T> T load_mutable(const void* array, int64_t i) const { return read<T>(array, i, false); }
    template <class T> void store(void* array, int64_t i, T value) const {
        T* at = static_cast<T*>(array) + i;
        machine_->memory.check_write(at);
        std::memcpy(static_cast<void*>(at), &value, sizeof(T));
    }

  private:
    template <class Test> static uint32_t collect(const std::array<uint64_t, 32>& values, const Test& test) {
        uint32_t mask = 0;
        for (size_t i = 0; i < 32; ++i) mask |= test(values[i]) ? 1u << i : 0u;
        return mask;
    }
    template <class T> T pick(int operation, T value, int lane) const {
        if (lane < 0 || lane > 31) throw Failure("shuffle from a lane that does not exist");
        return static_cast<T>(machine_->exchange(operation, static_cast<uint64_t>(value))[static_cast<size_t>(lane)]);
    }
    template <class T> T read(const void* array, int64_t i, bool cached) const {
        const T* at = static_cast<const T*>(array) + i;
        machine_->memory.check_read(at, cached);
        T value;
        std::memcpy(&value, static_cast<const void*>(at), sizeof(T));
        return value;
    }
    Machine* machine_;
    int thread_;
    int64_t index_;
};

/// Runs `body(block)` for `blocks` blocks of `Threads` threads.
template <int Threads, class Body>
void launch(int64_t blocks, int64_t shared_bytes, Memory& memory, uint64_t seed, const Body& body) {
    for (int64_t index = 0; index < blocks; ++index) {
        Machine machine(Threads, shared_bytes, memory, seed + static_cast<uint64_t>(index));
        machine.run([&](int thread) {
            HostBlock<Threads> block(&machine, thread, index);
            body(block);
        });
    }
}

}  // namespace trtprune::emulator
