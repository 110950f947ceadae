// The kernels' bodies under emulator.hpp, for ctypes.  Every function returns "" or what went wrong.
#include "emulator.hpp"

#include "trtprune/maxmin_select.cuh"
#include "trtprune/topk_gather.cuh"

namespace {

using trtprune::emulator::Failure;
using trtprune::emulator::launch;
using trtprune::emulator::Memory;

template <class Run> const char* report(const Run& run) {
    static thread_local std::string message;
    message.clear();
    try {
        run();
    } catch (const Failure& failure) {
        message = failure.what();
    }
    return message.c_str();
}

template <class Format> void topk_gather(const void* scores, const void* features, int64_t batch, int64_t tokens,
                                         int64_t keep, int64_t row_bytes, void* kept, int64_t* indices, uint64_t seed,
                                         int launches, int shares) {
    using namespace trtprune;
    constexpr int kKeyBytes = sizeof(typename Format::Bits);
    const auto addresses = reinterpret_cast<uintptr_t>(features) | reinterpret_cast<uintptr_t>(kept);
    TopKGatherPlan plan = plan_topk_gather(batch, tokens, keep, row_bytes, kKeyBytes, addresses);
    if (!plan.valid) throw Failure("invalid sizes");
    if (launches != 0) plan.launches = launches;
    if (shares != 0) plan.shares = shares;
    TopKGatherParams p{
        scores,      features, kept, indices, row_bytes, static_cast<int>(tokens), static_cast<int>(keep),
        plan.shares, plan.unit};
    const int64_t score_bytes = batch * tokens * kKeyBytes, index_bytes = batch * keep * 8;
    const auto gatherable = [&](Memory& memory) {
        memory.readable(features, batch * tokens * row_bytes);
        memory.writable(kept, batch * keep * row_bytes);
    };
    Memory first;
    first.readable(scores, score_bytes);
    first.writable(indices, index_bytes);
    if (plan.launches == 1) {
        gatherable(first);
        const int64_t shared = select_shared_bytes<typename Format::Bits>(kGatherThreads) +
                               4 * ((keep + plan.shares - 1) / plan.shares) + kKeyBytes * tokens;
        if (shares == 0 && shared != plan.shared_bytes) throw Failure("the plan's shared memory is not what is used");
        if (shared > 48 * 1024) throw Failure("more shared memory than a launch gets unasked");
        launch<kGatherThreads>(batch * plan.shares, shared, first, seed,
                               [&](auto& block) { device::topk_gather_block<Format>(block, p); });
        return;
    }
    launch<kSelectThreads>(batch, select_shared_bytes<typename Format::Bits>(kSelectThreads), first, seed,
                           [&](auto& block) { device::select_block<Format>(block, p); });
    Memory second;
    second.readable(indices, index_bytes);
    gatherable(second);
    launch<kGatherThreads>(batch * plan.shares, 0, second, seed, [&](auto& block) { device::gather_block(block, p); });
}

}  // namespace

extern "C" {

/// `launches` and `shares` override the plan where they are not 0.
const char* emulate_topk_gather(const void* scores, int dtype, const void* features, int64_t batch, int64_t tokens,
                                int64_t keep, int64_t row_bytes, void* kept, int64_t* indices, uint64_t seed,
                                int launches, int shares) {
    return report([&] {
        const auto run = dtype == 0   ? topk_gather<trtprune::Float32>
                         : dtype == 1 ? topk_gather<trtprune::Float16>
                                      : topk_gather<trtprune::BFloat16>;
        run(scores, features, batch, tokens, keep, row_bytes, kept, indices, seed, launches, shares);
    });
}

/// out: valid, launches, shares, unit, shared bytes.
void emulate_plan(int64_t batch, int64_t tokens, int64_t keep, int64_t row_bytes, int key_bytes, uint64_t addresses,
                  int64_t* out) {
    const auto plan = trtprune::plan_topk_gather(batch, tokens, keep, row_bytes, key_bytes, addresses);
    const int64_t values[] = {plan.valid, plan.launches, plan.shares, plan.unit, plan.shared_bytes};
    std::memcpy(out, values, sizeof(values));
}

const char* emulate_maxmin_select(const float* similarity, const float* close, int64_t batch, int64_t tokens,
                                  int64_t steps, int mode, float* close_out, int32_t* picks,
                                  const int64_t* device_steps, uint64_t seed) {
    return report([&] {
        using namespace trtprune;
        MaxMinParams p{similarity,
                       close,
                       close_out,
                       picks,
                       device_steps,
                       device_steps == nullptr ? static_cast<int>(steps) : 0,
                       static_cast<int>(tokens),
                       mode};
        Memory memory;
        memory.readable(similarity, batch * tokens * tokens * 4);
        if (close != close_out) memory.readable(close, batch * tokens * 4);
        memory.writable(close_out, batch * tokens * 4);
        if (picks != nullptr) memory.writable(picks, batch * steps * 4);
        if (device_steps != nullptr) memory.readable(device_steps, 8);
        launch<kMaxMinThreads>(batch, maxmin_shared_bytes(tokens), memory, seed,
                               [&](auto& block) { device::maxmin_block(block, p); });
    });
}

/// Kernels with a planted mistake: what the emulator is worth.
const char* emulate_mistake(const char* name, uint64_t seed) {
    return report([&] {
        const std::string mistake = name;
        std::vector<uint32_t> in(64), out(64);
        Memory memory;
        memory.readable(in.data(), 256);
        memory.writable(out.data(), 256);
        launch<64>(1, 256, memory, seed, [&](auto& block) {
            auto shared = block.template shared<uint32_t>(0);
            const int t = block.thread();
            if (mistake == "no barrier") {
                shared[t] = 1u;
                block.template store<uint32_t>(out.data(), t, shared[63 - t]);
            } else if (mistake == "overwritten while read") {
                shared[t] = 1u;
                block.sync();
                const uint32_t other = shared[63 - t];
                shared[t] = other;
            } else if (mistake == "two writers") {
                shared[0] = static_cast<uint32_t>(t);
            } else if (mistake == "read while added to") {
                shared[t] = 0u;
                block.sync();
                block.add(shared, 0, 1);
                block.template store<uint32_t>(out.data(), t, shared[0]);
            } else if (mistake == "not written") {
                block.template store<uint32_t>(out.data(), t, shared[t]);
            } else if (mistake == "barrier not reached by all") {
                if (t < 40) block.sync();
            } else if (mistake == "warp function not reached by all") {
                if (t != 5) block.ballot(true);
            } else if (mistake == "different warp functions") {
                if (t % 2 == 0) {
                    block.ballot(true);
                } else {
                    block.match(1u);
                }
            } else if (mistake == "shared out of bounds") {
                shared[t + 1] = 1u;
            } else if (mistake == "read out of bounds") {
                block.template load<uint32_t>(in.data(), t + 1);
            } else if (mistake == "write out of bounds") {
                block.template store<uint32_t>(out.data(), t - 1, 1u);
            } else if (mistake == "written twice") {
                block.template store<uint32_t>(out.data(), t / 2, 1u);
            } else if (mistake == "stale read") {
                block.template load<uint32_t>(out.data(), t);
            } else if (mistake == "misaligned") {
                block.template load<uint64_t>(reinterpret_cast<const char*>(in.data()) + 4, 0);
            } else if (mistake == "none") {
                shared[t] = block.template load<uint32_t>(in.data(), t);
                block.sync();
                block.template store<uint32_t>(out.data(), t, shared[63 - t] + block.ballot(true));
            } else {
                throw Failure("no such mistake");
            }
        });
    });
}

}  // extern "C"
