// TopKGather: the `keep` best-scored rows of a feature matrix, in their original order.  Needs the CUDA toolkit only.
//
//   scores [batch, tokens], features [batch, tokens, width]  ->  kept [batch, keep, width], indices int64 [batch, keep]
//
// Indices ascend.  Equal scores are taken from the lower index on, +0 equals -0, and NaN counts as -inf.
//
// How.  Scores become unsigned keys that order as the scores do, so that selection is exact integer work for float32,
// float16 and bfloat16 alike and subnormals are never flushed.  A radix select of eight bits a pass finds the smallest
// key that is kept and how many of its equals are; ballots and prefix sums then give every kept token its place in
// index order, which settles both "ascending" and "lower index first" without a sort.
//
// Up to kOneLaunchTokens tokens it is one launch.  A row is copied by several blocks, and instead of waiting for one
// another each of them selects for itself: the keys fit into shared memory, the scores into the L2 cache, and
// selecting takes about as long as copying the block's share (kShareBytes) does.  Beyond that, one block a row selects
// and a second launch copies.  Nothing is allocated and nothing waits for the host.
//
// A call cannot be faster than its traffic: batch * (tokens * sizeof(score) + 2 * keep * width * sizeof(feature)
// + 8 * keep) bytes over the memory's bandwidth.
//
// The functions of namespace `device` take what a block of threads can do as the template parameter Block, so that
// the same code runs on a GPU (CudaBlock) and, thread by thread, under the checks of tests/emulator.hpp.
#pragma once

#include "trtprune/block.cuh"

namespace trtprune {

constexpr int kMaxTokens = 32768;
constexpr int kOneLaunchTokens = 4096;
constexpr int kGatherThreads = 256;
constexpr int kSelectThreads = 1024;
constexpr int64_t kShareBytes = 16 * 1024;  // what a block copies at least, if there is enough to share
constexpr int64_t kMaxBlocks = 1024;        // more blocks than this run one after the other on any GPU

/// One call; pointers are device pointers to C-contiguous arrays.
struct TopKGatherParams {
    const void* scores;
    const void* features;
    void* kept;
    int64_t* indices;
    int64_t row_bytes;  // width * sizeof(feature)
    int tokens;
    int keep;
    int shares;  // blocks that copy one row of the batch
    int unit;    // bytes copied at once: 16, 8, 4, 2 or 1
};

/// How a call is laid out.
struct TopKGatherPlan {
    bool valid;
    int launches;
    int shares;
    int unit;
    int64_t shared_bytes;  // of the first launch
};

constexpr int kDigits = 256;
constexpr int kHistogramSlots = kDigits + kDigits / 8;  // one slot in nine is unused, see histogram_slot

/// Bytes of shared memory before the kept rows' numbers and the keys: histograms, then the warps' counts.
template <class Key> TRTPRUNE_HOST_DEVICE constexpr int64_t select_shared_bytes(int threads) {
    return static_cast<int64_t>(sizeof(uint32_t)) *
           (static_cast<int64_t>(sizeof(Key)) * kHistogramSlots + 2 * (threads / 32));
}

/// The layout of a call with `row_bytes` bytes of features a token, 16-byte aligned as far as `addresses` (features
/// and kept, or-ed together) is; `key_bytes` is the size of a score.
inline TopKGatherPlan plan_topk_gather(int64_t batch, int64_t tokens, int64_t keep, int64_t row_bytes, int key_bytes,
                                       uintptr_t addresses) {
    TopKGatherPlan plan{};
    if (batch < 0 || tokens < 1 || tokens > kMaxTokens || keep < 0 || keep > tokens || row_bytes < 0 ||
        row_bytes > (int64_t{1} << 24)) {
        return plan;
    }
    const auto alignment = static_cast<uint64_t>(addresses) | static_cast<uint64_t>(row_bytes) | 16u;
    plan.unit = static_cast<int>(alignment & (~alignment + 1));
    const int64_t bytes = keep * row_bytes;
    int64_t shares = (bytes + kShareBytes - 1) / kShareBytes;
    const int64_t most = batch > 0 && batch < kMaxBlocks ? kMaxBlocks / batch : 1;
    shares = shares < most ? shares : most;
    const int64_t least = bytes / plan.unit / (int64_t{1} << 30) + 1;  // 32 bits count a block's units
    shares = shares > least ? shares : least;
    shares = shares < keep ? shares : (keep > 0 ? keep : 1);
    plan.shares = static_cast<int>(shares);
    plan.launches = tokens <= kOneLaunchTokens ? 1 : 2;
    if (plan.launches == 1) {
        const int64_t base = key_bytes == 4 ? select_shared_bytes<uint32_t>(kGatherThreads)
                                            : select_shared_bytes<uint16_t>(kGatherThreads);
        plan.shared_bytes = base + 4 * ((keep + shares - 1) / shares) + key_bytes * tokens;
    } else {
        plan.shared_bytes = key_bytes == 4 ? select_shared_bytes<uint32_t>(kSelectThreads)
                                           : select_shared_bytes<uint16_t>(kSelectThreads);
    }
    plan.valid = batch * shares < (int64_t{1} << 31);
    return plan;
}

namespace device {

/// Kept are the tokens with (key & mask) > prefix, and of those with (key & mask) == prefix the first `ties`.
template <class Key> struct Threshold {
    Key prefix;
    Key mask;
    int ties;
};

/// Where the count of a digit lies: a warp reads eight neighbouring digits a lane, and the gap after every eight
/// puts the lanes on different banks.
TRTPRUNE_DEVICE int histogram_slot(int digit) {
    return digit + digit / 8;
}

/// The threshold of the `keep` largest of `tokens` keys, 1 <= keep <= tokens.  `keys(i)` is read many times;
/// `histograms` has sizeof(Key) * kHistogramSlots numbers.  Every thread of the block gets the same result.
template <class Key, class Block, class Keys, class Shared>
TRTPRUNE_DEVICE Threshold<Key> find_threshold(Block& block, const Keys& keys, int tokens, int keep, Shared histograms) {
    constexpr int kPasses = sizeof(Key);
    constexpr int kBins = kDigits / 32;  // of a lane
    constexpr uint32_t kNone = kDigits;
    // A histogram for every pass, cleared at once: each pass then needs a single barrier.
    for (int i = block.thread(); i < kPasses * kHistogramSlots; i += Block::kThreads) histograms[i] = 0;
    block.sync();

    Threshold<Key> found{0, 0, keep};
    for (int pass = 0; pass < kPasses; ++pass) {
        const int shift = 8 * (kPasses - 1 - pass);
        Shared bins = histograms + pass * kHistogramSlots;
        for (int first = 0; first < tokens; first += Block::kThreads) {
            const int i = first + block.thread();
            uint32_t digit = kNone;
            if (i < tokens) {
                const Key key = keys(i);
                if ((key & found.mask) == found.prefix) digit = (key >> shift) & (kDigits - 1);
            }
            // Scores share their leading digits, so lanes that meet in a bin add together.
            const uint32_t peers = block.match(digit);
            if (digit != kNone && block.lane() == block.first_set(peers)) {
                block.add(bins, histogram_slot(static_cast<int>(digit)), block.count_set(peers));
            }
        }
        block.sync();

        // Every warp scans the digits from the largest down, eight a lane, rather than wait for one that does.
        const int top = kDigits - 1 - kBins * block.lane();
        int own = 0;
        for (int j = 0; j < kBins; ++j) own += static_cast<int>(bins[histogram_slot(top - j)]);
        int sum = own;
        for (int distance = 1; distance < 32; distance *= 2) {
            const int lower = block.shuffle_up(sum, distance);
            if (block.lane() >= distance) sum += lower;
        }
        const int before = sum - own;
        const int crossing = block.first_set(block.ballot(before < found.ties && found.ties <= sum));
        int digit = 0, left = found.ties - before, members = 0;
        if (block.lane() == crossing) {
            for (int j = 0; j < kBins; ++j) {
                members = static_cast<int>(bins[histogram_slot(top - j)]);
                digit = top - j;
                if (left <= members) break;
                left -= members;
            }
        }
        digit = block.shuffle(digit, crossing);
        members = block.shuffle(members, crossing);
        found.ties = block.shuffle(left, crossing);
        found.prefix = static_cast<Key>(found.prefix | (static_cast<Key>(digit) << shift));
        found.mask = static_cast<Key>(found.mask | (static_cast<Key>(kDigits - 1) << shift));
        if (members == found.ties) break;  // all keys with this prefix are kept: no need to tell them apart
    }
    return found;
}

/// Calls emit(place, token) for every kept token, place = 0, 1, ... in the order of the tokens.  `counts` has two
/// numbers a warp.  Each warp has a stretch of tokens: it counts, adds up what the warps before it have, and goes
/// through its stretch again.
template <class Key, class Block, class Keys, class Shared, class Emit>
TRTPRUNE_DEVICE void compact(Block& block, const Keys& keys, int tokens, Threshold<Key> threshold, Shared counts,
                             const Emit& emit) {
    constexpr int kWarps = Block::kThreads / 32;
    const int stretch = (tokens + Block::kThreads - 1) / Block::kThreads * 32;
    const int begin = block.warp() * stretch;
    const int end = begin + stretch < tokens ? begin + stretch : tokens;

    const auto classify = [&](int i, uint32_t& above, uint32_t& equal) {
        const Key key = i < end ? static_cast<Key>(keys(i) & threshold.mask) : Key{0};
        above = block.ballot(i < end && key > threshold.prefix);
        equal = block.ballot(i < end && key == threshold.prefix);
    };
    uint32_t above, equal;
    int above_before = 0, equal_before = 0;
    for (int first = begin; first < end; first += 32) {
        classify(first + block.lane(), above, equal);
        above_before += block.count_set(above);
        equal_before += block.count_set(equal);
    }
    if (block.lane() == 0) {
        counts[block.warp()] = static_cast<uint32_t>(above_before);
        counts[kWarps + block.warp()] = static_cast<uint32_t>(equal_before);
    }
    block.sync();
    const bool earlier = block.lane() < block.warp();
    above_before = earlier ? static_cast<int>(counts[block.lane()]) : 0;
    equal_before = earlier ? static_cast<int>(counts[kWarps + block.lane()]) : 0;
    for (int distance = 16; distance > 0; distance /= 2) {
        above_before += block.shuffle_xor(above_before, distance);
        equal_before += block.shuffle_xor(equal_before, distance);
    }

    const uint32_t lower_lanes = (1u << block.lane()) - 1;
    for (int first = begin; first < end; first += 32) {
        const int i = first + block.lane();
        classify(i, above, equal);
        const int rank = equal_before + block.count_set(equal & lower_lanes);  // among the keys at the threshold
        const int ties = rank < threshold.ties ? rank : threshold.ties;
        const bool tie = (equal >> block.lane() & 1u) != 0 && rank < threshold.ties;
        if (tie || (above >> block.lane() & 1u) != 0) {
            emit(above_before + block.count_set(above & lower_lanes) + ties, i);
        }
        above_before += block.count_set(above);
        equal_before += block.count_set(equal);
    }
}

/// The kept rows begin..end of one row of the batch.
struct Share {
    int64_t row;
    int begin;
    int end;
};

/// What a block copies.
template <class Block> TRTPRUNE_DEVICE Share share_of(const Block& block, const TopKGatherParams& p) {
    const int64_t share = block.index() % p.shares;
    return {block.index() / p.shares, static_cast<int>(p.keep * share / p.shares),
            static_cast<int>(p.keep * (share + 1) / p.shares)};
}

/// Copies a share; token_at(place) names the token of row begin + place.
template <class Unit, class Block, class TokenAt>
TRTPRUNE_DEVICE void copy_units(Block& block, const TopKGatherParams& p, Share share, const TokenAt& token_at) {
    constexpr int kFlight = 4;  // loads a thread has under way
    const auto units = static_cast<uint32_t>(p.row_bytes / static_cast<int64_t>(sizeof(Unit)));
    const uint32_t total = static_cast<uint32_t>(share.end - share.begin) * units;
    const int64_t source = share.row * p.tokens * units;
    const int64_t target = (share.row * p.keep + share.begin) * units;
    for (uint32_t first = block.thread(); first < total; first += kFlight * Block::kThreads) {
        Unit held[kFlight];
        TRTPRUNE_UNROLL
        for (int j = 0; j < kFlight; ++j) {
            const uint32_t i = first + j * Block::kThreads;
            if (i < total) {
                const uint32_t place = i / units;
                const int64_t token = token_at(static_cast<int>(place));
                held[j] = block.template load<Unit>(p.features, source + token * units + (i - place * units));
            }
        }
        TRTPRUNE_UNROLL
        for (int j = 0; j < kFlight; ++j) {
            const uint32_t i = first + j * Block::kThreads;
            if (i < total) block.template store<Unit>(p.kept, target + i, held[j]);
        }
    }
}

template <class Block, class TokenAt>
TRTPRUNE_DEVICE void copy_rows(Block& block, const TopKGatherParams& p, Share share, const TokenAt& token_at) {
    if (p.unit == 16) return copy_units<typename Block::Bytes16>(block, p, share, token_at);
    if (p.unit == 8) return copy_units<uint64_t>(block, p, share, token_at);
    if (p.unit == 4) return copy_units<uint32_t>(block, p, share, token_at);
    if (p.unit == 2) return copy_units<uint16_t>(block, p, share, token_at);
    return copy_units<uint8_t>(block, p, share, token_at);
}

/// Selection and copy in one launch; batch * shares blocks of kGatherThreads.
template <class Format, class Block> TRTPRUNE_DEVICE void topk_gather_block(Block& block, const TopKGatherParams& p) {
    using Key = typename Format::Bits;
    const Share share = share_of(block, p);
    auto histograms = block.template shared<uint32_t>(0);
    auto counts = histograms + static_cast<int>(sizeof(Key)) * kHistogramSlots;
    auto chosen = counts + 2 * (Block::kThreads / 32);
    auto cached = block.template shared<Key>(select_shared_bytes<Key>(Block::kThreads) +
                                             4 * ((p.keep + p.shares - 1) / p.shares));

    for (int i = block.thread(); i < p.tokens; i += Block::kThreads) {
        cached[i] = order_key<Format>(block.template load<Key>(p.scores, share.row * p.tokens + i));
    }
    const auto keys = [&](int i) -> Key { return cached[i]; };
    // The keys are complete at find_threshold's first barrier.
    const auto threshold = find_threshold<Key>(block, keys, p.tokens, p.keep, histograms);
    compact<Key>(block, keys, p.tokens, threshold, counts, [&](int place, int token) {
        if (place < share.begin || place >= share.end) return;
        chosen[place - share.begin] = static_cast<uint32_t>(token);
        block.template store<int64_t>(p.indices, share.row * p.keep + place, token);
    });
    block.sync();
    copy_rows(block, p, share, [&](int place) -> int64_t { return chosen[place]; });
}

/// The first of two launches: the indices alone, the scores read anew in every pass; batch blocks of kSelectThreads.
template <class Format, class Block> TRTPRUNE_DEVICE void select_block(Block& block, const TopKGatherParams& p) {
    using Key = typename Format::Bits;
    const int64_t row = block.index();
    auto histograms = block.template shared<uint32_t>(0);
    auto counts = histograms + static_cast<int>(sizeof(Key)) * kHistogramSlots;
    const auto keys = [&](int i) -> Key {
        return order_key<Format>(block.template load<Key>(p.scores, row * p.tokens + i));
    };
    const auto threshold = find_threshold<Key>(block, keys, p.tokens, p.keep, histograms);
    compact<Key>(block, keys, p.tokens, threshold, counts,
                 [&](int place, int token) { block.template store<int64_t>(p.indices, row * p.keep + place, token); });
}

/// The second: copies; batch * shares blocks of kGatherThreads.
template <class Block> TRTPRUNE_DEVICE void gather_block(Block& block, const TopKGatherParams& p) {
    const Share share = share_of(block, p);
    copy_rows(block, p, share, [&](int place) -> int64_t {
        return block.template load<int64_t>(p.indices, share.row * p.keep + share.begin + place);
    });
}

}  // namespace device

#ifdef __CUDACC__

template <class Format> __global__ void __launch_bounds__(kGatherThreads) topk_gather_kernel(TopKGatherParams p) {
    CudaBlock<kGatherThreads> block;
    device::topk_gather_block<Format>(block, p);
}
template <class Format> __global__ void __launch_bounds__(kSelectThreads) topk_select_kernel(TopKGatherParams p) {
    CudaBlock<kSelectThreads> block;
    device::select_block<Format>(block, p);
}
template <int Threads> __global__ void __launch_bounds__(Threads) gather_kernel(TopKGatherParams p) {
    CudaBlock<Threads> block;
    device::gather_block(block, p);
}

/// Bytes of workspace that topk_gather() needs: none, whatever the sizes.  (Two launches hand over in `indices`.)
inline size_t topk_gather_workspace(int64_t /*batch*/, int64_t /*tokens*/, int64_t /*keep*/) {
    return 0;
}

/// Puts TopKGather on `stream`.  `Format` is that of the scores; features are copied as they are, `row_bytes` a token.
/// Returns cudaErrorInvalidValue for sizes out of range, else what the launch returns.
template <class Format> cudaError_t topk_gather(const void* scores, const void* features, int64_t batch, int64_t tokens,
                                                int64_t keep, int64_t row_bytes, void* kept, int64_t* indices,
                                                cudaStream_t stream) {
    const auto addresses = reinterpret_cast<uintptr_t>(features) | reinterpret_cast<uintptr_t>(kept);
    const TopKGatherPlan plan =
        plan_topk_gather(batch, tokens, keep, row_bytes, sizeof(typename Format::Bits), addresses);
    if (!plan.valid) return cudaErrorInvalidValue;
    if (batch == 0 || keep == 0) return cudaSuccess;
    const TopKGatherParams p{
        scores,      features, kept, indices, row_bytes, static_cast<int>(tokens), static_cast<int>(keep),
        plan.shares, plan.unit};
    const int64_t blocks = batch * plan.shares;
    if (plan.launches == 1) {
        return launch(topk_gather_kernel<Format>, blocks, kGatherThreads, plan.shared_bytes, stream, p);
    }
    const cudaError_t error = launch(topk_select_kernel<Format>, batch, kSelectThreads, plan.shared_bytes, stream, p);
    if (error != cudaSuccess || row_bytes == 0) return error;
    return launch(gather_kernel<kGatherThreads>, blocks, kGatherThreads, 0, stream, p);
}

#endif  // __CUDACC__

}  // namespace trtprune
