// Greedy selection of tokens that are unlike each other: the loop of ZSPAPrune's diversity stage and of DivPrune.
//
//   repeat `steps` times:
//       best        = argmin(close), the lowest index of equals
//       close       = max(close, similarity[best])    (kMaxMin: the largest similarity to any token picked so far)
//                     close + similarity[best]        (kMeanSim: their sum)
//       close[best] = kTaken
//
// `close` [batch, tokens] float32 starts as the closeness to the tokens picked before (kTaken for these themselves) and
// `similarity` is float32 [batch, tokens, tokens].  The additions and comparisons are those of the NumPy reference in
// the same order, so the picks are the same, not merely similar.  A NaN closeness is picked last.
//
// One block serves a row of the batch.  A step reads one row of `similarity` (from the L2 cache, as a rule), updates
// `close`, which stays in shared memory, finds the next minimum in the same sweep, and costs a single barrier; the loop
// of graph nodes that it replaces costs several launches a step.
#pragma once

#include "trtprune/block.cuh"

namespace trtprune {

constexpr int kMaxMinTokens = 16384;  // `close` in shared memory, 4 bytes each
/// Shared memory of a block that a kernel has without asking for it, on every GPU.
constexpr int64_t kPlainSharedBytes = 48 * 1024;
constexpr int kMaxMinThreads = 512;
constexpr float kTaken = 3.0e38f;  // above every closeness

enum MaxMinMode : int32_t { kMaxMin = 0, kMeanSim = 1 };

/// One call; pointers are device pointers to C-contiguous arrays.
struct MaxMinParams {
    const float* similarity;
    const float* close;
    float* close_out;             // may be `close`
    int32_t* picks;               // [batch, steps] in order of selection, or null
    const int64_t* device_steps;  // where the number of steps lies, or null: then it is `steps`
    int steps;
    int tokens;
    int mode;
};

namespace device {

/// Orders by closeness, then by index; the index is in the lower half.
TRTPRUNE_DEVICE uint64_t candidate(uint32_t bits, int token) {
    constexpr uint32_t kMagnitude = ~Float32::kSign;
    // As a score NaN would come first.
    const uint32_t key = (bits & kMagnitude) > Float32::kInfinity ? ~0u : order_key<Float32>(bits);
    return static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(token);
}

/// The minimum over the block; `slots` has one number a warp.
template <class Block, class Shared> TRTPRUNE_DEVICE uint64_t block_min(Block& block, uint64_t value, Shared slots) {
    for (int distance = 16; distance > 0; distance /= 2) {
        const uint64_t other = block.shuffle_xor(value, distance);
        value = other < value ? other : value;
    }
    if (block.lane() == 0) slots[block.warp()] = value;
    block.sync();
    value = block.lane() < Block::kThreads / 32 ? slots[block.lane()] : ~uint64_t{0};
    for (int distance = 16; distance > 0; distance /= 2) {
        const uint64_t other = block.shuffle_xor(value, distance);
        value = other < value ? other : value;
    }
    return value;
}

constexpr int kSlotBytes = 2 * 32 * static_cast<int>(sizeof(uint64_t));

/// batch blocks of kMaxMinThreads; every thread keeps to its own tokens of `close`.
template <class Block> TRTPRUNE_DEVICE void maxmin_block(Block& block, const MaxMinParams& p) {
    const int64_t row = block.index() * p.tokens;
    auto slots = block.template shared<uint64_t>(0);
    auto close = block.template shared<float>(kSlotBytes);
    const int64_t steps = p.device_steps != nullptr ? block.template load<int64_t>(p.device_steps, 0) : p.steps;

    uint64_t best = ~uint64_t{0};
    for (int i = block.thread(); i < p.tokens; i += Block::kThreads) {
        const float value = block.template load_mutable<float>(p.close, row + i);
        close[i] = value;
        const uint64_t mine = candidate(block.bits(value), i);
        best = mine < best ? mine : best;
    }
    for (int64_t step = 0; step < steps; ++step) {
        // Two sets of slots in turn: a slow warp may still be reading those of the last step.
        best = block_min(block, best, slots + static_cast<int>(step % 2) * 32);
        const int picked = static_cast<int>(static_cast<uint32_t>(best));
        if (p.picks != nullptr && block.thread() == 0) {
            block.template store<int32_t>(p.picks, block.index() * steps + step, picked);
        }
        best = ~uint64_t{0};
        for (int i = block.thread(); i < p.tokens; i += Block::kThreads) {
            const float similar = block.template load<float>(p.similarity, (row + picked) * p.tokens + i);
            float value = close[i];
            if (p.mode == kMaxMin) {
                value = similar > value ? similar : value;
            } else {
                value = value + similar;
            }
            if (i == picked) value = kTaken;
            close[i] = value;
            const uint64_t mine = candidate(block.bits(value), i);
            best = mine < best ? mine : best;
        }
    }
    for (int i = block.thread(); i < p.tokens; i += Block::kThreads) {
        block.template store<float>(p.close_out, row + i, close[i]);
    }
}

}  // namespace device

/// Bytes of shared memory of a block: 64.5 KiB for kMaxMinTokens.
constexpr int64_t maxmin_shared_bytes(int64_t tokens) {
    return device::kSlotBytes + static_cast<int64_t>(sizeof(float)) * tokens;
}

#ifdef __CUDACC__

template <int Threads> __global__ void __launch_bounds__(Threads) maxmin_kernel(MaxMinParams p) {
    CudaBlock<Threads> block;
    device::maxmin_block(block, p);
}

/// Puts the selection on `stream`.  Returns cudaErrorInvalidValue for sizes out of range, else what the launch returns.
inline cudaError_t maxmin_select(const MaxMinParams& p, int64_t batch, cudaStream_t stream) {
    if (batch < 0 || batch >= int64_t{1} << 31 || p.tokens < 1 || p.tokens > kMaxMinTokens || p.steps < 0 ||
        (p.mode != kMaxMin && p.mode != kMeanSim)) {
        return cudaErrorInvalidValue;
    }
    if (batch == 0) return cudaSuccess;
    const int64_t shared_bytes = maxmin_shared_bytes(p.tokens);
    if (shared_bytes > kPlainSharedBytes) {
        // More is asked for kernel by kernel; every GPU from Ampere on has it.
        const cudaError_t error = cudaFuncSetAttribute(maxmin_kernel<kMaxMinThreads>,
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                       static_cast<int>(shared_bytes));
        if (error != cudaSuccess) return error;
    }
    return launch(maxmin_kernel<kMaxMinThreads>, batch, kMaxMinThreads, shared_bytes, stream, p);
}

#endif  // __CUDACC__

}  // namespace trtprune
