// What the kernels are written in: score formats, keys that order as scores do, and a block of threads.
//
// A kernel's body takes the block as a template parameter, so that one source runs on a GPU (CudaBlock) and, thread by
// thread with every access checked, on the CPU (tests/emulator.hpp).  Needs the CUDA toolkit only, or no CUDA at all.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define TRTPRUNE_DEVICE __device__ __forceinline__
#define TRTPRUNE_HOST_DEVICE __host__ __device__ inline
#define TRTPRUNE_UNROLL _Pragma("unroll")
#else
#define TRTPRUNE_DEVICE inline
#define TRTPRUNE_HOST_DEVICE inline
#define TRTPRUNE_UNROLL
#endif

namespace trtprune {

/// Bits of the score formats.
struct Float32 {
    using Bits = uint32_t;
    static constexpr Bits kSign = 0x80000000u, kInfinity = 0x7f800000u;
};
struct Float16 {
    using Bits = uint16_t;
    static constexpr Bits kSign = 0x8000u, kInfinity = 0x7c00u;
};
struct BFloat16 {
    using Bits = uint16_t;
    static constexpr Bits kSign = 0x8000u, kInfinity = 0x7f80u;
};

namespace device {

/// An unsigned number that orders as the score with these bits does.
template <class Format> TRTPRUNE_DEVICE typename Format::Bits order_key(typename Format::Bits bits) {
    using Bits = typename Format::Bits;
    const auto magnitude = static_cast<Bits>(bits & ~Format::kSign);
    if (magnitude > Format::kInfinity) bits = Format::kSign | Format::kInfinity;
    if (magnitude == 0) bits = 0;
    return static_cast<Bits>(bits & Format::kSign ? ~bits : bits | Format::kSign);
}

}  // namespace device

#ifdef __CUDACC__

/// What a block of `Threads` threads can do, on a GPU.  Warp functions are called by all lanes of a warp together.
template <int Threads> struct CudaBlock {
    static constexpr int kThreads = Threads;
    using Bytes16 = uint4;
    static_assert(Threads % 32 == 0 && Threads <= 1024, "whole warps, at most 32");

    TRTPRUNE_DEVICE int thread() const { return threadIdx.x; }
    TRTPRUNE_DEVICE int lane() const { return threadIdx.x % 32; }
    TRTPRUNE_DEVICE int warp() const { return threadIdx.x / 32; }
    TRTPRUNE_DEVICE int64_t index() const { return blockIdx.x; }
    TRTPRUNE_DEVICE void sync() const { __syncthreads(); }

    TRTPRUNE_DEVICE uint32_t ballot(bool value) const { return __ballot_sync(~0u, value); }
    TRTPRUNE_DEVICE uint32_t match(uint32_t value) const { return __match_any_sync(~0u, value); }
    template <class T> TRTPRUNE_DEVICE T shuffle(T value, int lane) const { return __shfl_sync(~0u, value, lane); }
    template <class T> TRTPRUNE_DEVICE T shuffle_up(T value, int distance) const {
        return __shfl_up_sync(~0u, value, distance);
    }
    template <class T> TRTPRUNE_DEVICE T shuffle_xor(T value, int distance) const {
        return __shfl_xor_sync(~0u, value, distance);
    }
    TRTPRUNE_DEVICE static int first_set(uint32_t mask) { return __ffs(static_cast<int>(mask)) - 1; }
    TRTPRUNE_DEVICE static int count_set(uint32_t mask) { return __popc(mask); }

    /// The block's shared memory from `offset` bytes on.
    template <class T> TRTPRUNE_DEVICE T* shared(int64_t offset) const {
        extern __shared__ __align__(16) unsigned char trtprune_shared[];
        return reinterpret_cast<T*>(trtprune_shared + offset);
    }
    TRTPRUNE_DEVICE static uint32_t bits(float value) { return __float_as_uint(value); }
    TRTPRUNE_DEVICE void add(uint32_t* array, int i, int value) const {
        atomicAdd(array + i, static_cast<uint32_t>(value));
    }

    /// Element `i` of an array that no thread of this launch writes.
    template <class T> TRTPRUNE_DEVICE T load(const void* array, int64_t i) const {
        return __ldg(static_cast<const T*>(array) + i);
    }
    /// Element `i` of an array that this thread may write later.
    template <class T> TRTPRUNE_DEVICE T load_mutable(const void* array, int64_t i) const {
        return static_cast<const T*>(array)[i];
    }
    template <class T> TRTPRUNE_DEVICE void store(void* array, int64_t i, T value) const {
        static_cast<T*>(array)[i] = value;
    }
};

/// Launches `kernel(params)`; what it returns is this launch's, not some earlier call's last error.
template <class Params> cudaError_t launch(void (*kernel)(Params), int64_t blocks, int threads, int64_t shared_bytes,
                                           cudaStream_t stream, Params params) {
    void* arguments[] = {&params};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                            dim3(static_cast<unsigned>(threads)), arguments, static_cast<size_t>(shared_bytes), stream);
}

#endif  // __CUDACC__

}  // namespace trtprune
