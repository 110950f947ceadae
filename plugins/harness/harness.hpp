// Proves and times the kernels on a GPU, whichever way they are called (kernel_bench.cpp, plugin_harness.cpp):
// random cases against a reference on the host, and times against the traffic's.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "trtprune/kernels.h"

namespace trtprune::harness {

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

/// Device memory with a margin on both sides that nobody may write to.
class Buffer {
  public:
    /// `offset` moves the start away from the allocation's alignment.
    Buffer(size_t bytes, size_t offset) : bytes_(bytes), offset_(offset) {
        check(cudaMalloc(&base_, bytes + offset + 2 * kMargin), "cudaMalloc");
        check(cudaMemset(base_, kPoison, bytes + offset + 2 * kMargin), "cudaMemset");
    }
    Buffer(const void* data, size_t bytes, size_t offset) : Buffer(bytes, offset) {
        check(cudaMemcpy(get(), data, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Buffer(Buffer&& other) noexcept : base_(other.base_), bytes_(other.bytes_), offset_(other.offset_) {
        other.base_ = nullptr;
    }
    ~Buffer() { cudaFree(base_); }

    void* get() const { return static_cast<char*>(base_) + kMargin + offset_; }
    bool margins_intact() const {
        std::vector<unsigned char> all(bytes_ + offset_ + 2 * kMargin);
        check(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
        const auto poisoned = [](unsigned char byte) { return byte == kPoison; };
        const auto begin = all.begin() + static_cast<std::ptrdiff_t>(kMargin + offset_);
        return std::all_of(all.begin(), begin, poisoned) &&
               std::all_of(begin + static_cast<std::ptrdiff_t>(bytes_), all.end(), poisoned);
    }
    template <class T> std::vector<T> read() const {
        std::vector<T> values(bytes_ / sizeof(T));
        check(cudaMemcpy(values.data(), get(), bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy");
        return values;
    }

  private:
    static constexpr size_t kMargin = 256;
    static constexpr unsigned char kPoison = 0xCD;
    void* base_ = nullptr;
    size_t bytes_, offset_;
};

constexpr const char* kDtypes[] = {"float32", "float16", "bfloat16"};
inline size_t dtype_bytes(int dtype) {
    return dtype == TRTPRUNE_FLOAT32 ? 4 : 2;
}

/// Sizes of a TopKGather, and how its calls are made: device pointers and a stream in, an error code out.
struct TopKCase {
    int scores_dtype, features_dtype;
    int64_t batch, tokens, width, keep;
};
using TopKCall = std::function<int(const TopKCase&, const void* scores, const void* features, void* kept,
                                   int64_t* indices, cudaStream_t stream)>;
struct MaxMinCase {
    int64_t batch, tokens, steps;
    int mode;
};
using MaxMinCall = std::function<int(const MaxMinCase&, const float* similarity, const float* close, float* close_out,
                                     cudaStream_t stream)>;

/// The number that a score's bits stand for.
inline double value_of(uint32_t bits, int dtype) {
    if (dtype != TRTPRUNE_FLOAT16) {
        const uint32_t wide = dtype == TRTPRUNE_BFLOAT16 ? bits << 16 : bits;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
    const int exponent = static_cast<int>(bits >> 10 & 31u);
    const double mantissa = bits & 1023u, sign = bits >> 15 != 0 ? -1.0 : 1.0;
    if (exponent == 31) return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
    return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

/// Scores of one of several kinds: distinct ones, few levels, one level, special values, any bits at all.
inline std::vector<uint32_t> random_scores(size_t count, int dtype, std::mt19937_64& random) {
    const bool narrow = dtype != TRTPRUNE_FLOAT32;
    const int drop = dtype == TRTPRUNE_BFLOAT16 ? 16 : 0;
    const auto of = [&](uint32_t wide, uint32_t half) { return dtype == TRTPRUNE_FLOAT16 ? half : wide >> drop; };
    const std::vector<uint32_t> special = {of(0x7fc00000u, 0x7e00u),
                                           of(0xffc00000u, 0xfe00u),
                                           of(0x7f800000u, 0x7c00u),
                                           of(0xff800000u, 0xfc00u),
                                           of(0, 0),
                                           of(0x80000000u, 0x8000u),
                                           of(0x00010000u, 0x0001u),
                                           of(0x80010000u, 0x8001u),
                                           of(0x3f800000u, 0x3c00u),
                                           of(0xbf800000u, 0xbc00u),
                                           of(0x7f7f0000u, 0x7bffu)};
    const auto kind = random() % 5;
    const uint64_t levels = 1 + random() % 40;
    const auto any = static_cast<uint32_t>(random());
    std::vector<uint32_t> bits(count);
    for (uint32_t& b : bits) {
        if (kind == 0) b = of(0x3a000000u, 0x1000u) + static_cast<uint32_t>(random() % (narrow ? 3000 : 1 << 24));
        if (kind == 1) b = of(0x3f800000u, 0x3c00u) + static_cast<uint32_t>(random() % levels);
        if (kind == 2) b = any;
        if (kind == 3) b = special[random() % special.size()];
        if (kind == 4) b = static_cast<uint32_t>(random());
        if (narrow) b &= 0xffffu;
    }
    return bits;
}

/// Indices of the kept tokens of one row: a stable sort, which shares nothing with the kernels.
inline std::vector<int64_t> expected_indices(const uint32_t* bits, int64_t tokens, int64_t keep, int dtype) {
    std::vector<double> values(static_cast<size_t>(tokens));
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] = value_of(bits[i], dtype);
        if (std::isnan(values[i])) values[i] = -INFINITY;
    }
    std::vector<int64_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
    });
    order.resize(static_cast<size_t>(keep));
    std::sort(order.begin(), order.end());
    return order;
}

/// "" or what is wrong with the result of one random case.
inline std::string prove_topk(const TopKCase& c, const TopKCall& call, std::mt19937_64& random) {
    const auto rows = static_cast<size_t>(c.batch), tokens = static_cast<size_t>(c.tokens);
    const size_t width = static_cast<size_t>(c.width), keep = static_cast<size_t>(c.keep);
    const size_t score_size = dtype_bytes(c.scores_dtype), row_bytes = width * dtype_bytes(c.features_dtype);
    const std::vector<uint32_t> bits = random_scores(rows * tokens, c.scores_dtype, random);
    std::vector<unsigned char> scores(bits.size() * score_size), features(rows * tokens * row_bytes);
    for (size_t i = 0; i < bits.size(); ++i) std::memcpy(&scores[i * score_size], &bits[i], score_size);
    for (unsigned char& byte : features) byte = static_cast<unsigned char>(random());
    const size_t offset = random() % 3 == 0 ? dtype_bytes(c.features_dtype) * (random() % 8) : 0;

    const Buffer device_scores(scores.data(), scores.size(), 0);
    const Buffer device_features(features.data(), features.size(), offset);
    const Buffer kept(rows * keep * row_bytes, offset), indices(rows * keep * 8, 0);
    const int error =
        call(c, device_scores.get(), device_features.get(), kept.get(), static_cast<int64_t*>(indices.get()), nullptr);
    if (error != 0) return "the call returned " + std::to_string(error);
    check(cudaDeviceSynchronize(), "the kernel");
    const auto got_indices = indices.read<int64_t>();
    const auto got_kept = kept.read<unsigned char>();
    for (size_t row = 0; row < rows; ++row) {
        const auto expected = expected_indices(&bits[row * tokens], c.tokens, c.keep, c.scores_dtype);
        for (size_t i = 0; i < keep; ++i) {
            if (got_indices[row * keep + i] != expected[i]) return "wrong index at " + std::to_string(i);
            const auto source = (row * tokens + static_cast<size_t>(expected[i])) * row_bytes;
            if (row_bytes > 0 &&
                std::memcmp(&got_kept[(row * keep + i) * row_bytes], &features[source], row_bytes) != 0) {
                return "wrong features at " + std::to_string(i);
            }
        }
    }
    if (!kept.margins_intact() || !indices.margins_intact()) return "wrote beyond its outputs";
    return "";
}

inline std::string prove_maxmin(const MaxMinCase& c, const MaxMinCall& call, std::mt19937_64& random) {
    const auto rows = static_cast<size_t>(c.batch), tokens = static_cast<size_t>(c.tokens);
    std::vector<float> similarity(rows * tokens * tokens), close(rows * tokens);
    const auto levels = static_cast<double>(2 + random() % 60);
    for (float& value : similarity) value = static_cast<float>(static_cast<double>(random() % 61) / levels - 0.5);
    for (float& value : close) value = static_cast<float>(random() % 5) / 4;
    const Buffer device_similarity(similarity.data(), similarity.size() * 4, 0);
    const Buffer device_close(close.data(), close.size() * 4, 0), result(close.size() * 4, 0);
    const int error = call(c, static_cast<const float*>(device_similarity.get()),
                           static_cast<const float*>(device_close.get()), static_cast<float*>(result.get()), nullptr);
    if (error != 0) return "the call returned " + std::to_string(error);
    check(cudaDeviceSynchronize(), "the kernel");
    for (size_t row = 0; row < rows; ++row) {
        float* state = &close[row * tokens];
        for (int64_t step = 0; step < c.steps; ++step) {
            const auto best = static_cast<size_t>(std::min_element(state, state + tokens) - state);
            const float* line = &similarity[(row * tokens + best) * tokens];
            for (size_t i = 0; i < tokens; ++i) {
                state[i] = c.mode == TRTPRUNE_MAXMIN ? std::max(state[i], line[i]) : state[i] + line[i];
            }
            state[best] = 3.0e38f;
        }
    }
    const auto got = result.read<float>();
    for (size_t i = 0; i < close.size(); ++i) {
        if (got[i] != close[i]) return "wrong closeness at " + std::to_string(i);
    }
    return result.margins_intact() ? "" : "wrote beyond its output";
}

inline std::string text(const TopKCase& c) {
    return "\"scores\": \"" + std::string(kDtypes[c.scores_dtype]) + "\", \"features\": \"" +
           kDtypes[c.features_dtype] + "\", \"batch\": " + std::to_string(c.batch) +
           ", \"tokens\": " + std::to_string(c.tokens) + ", \"width\": " + std::to_string(c.width) +
           ", \"keep\": " + std::to_string(c.keep);
}

/// Median over `rounds` of the mean time of `calls` calls, in microseconds.
inline double time_us(const std::function<void(int)>& call, int calls, int rounds, cudaStream_t stream) {
    cudaEvent_t begin, end;
    check(cudaEventCreate(&begin), "cudaEventCreate");
    check(cudaEventCreate(&end), "cudaEventCreate");
    std::vector<double> times;
    for (int round = -1; round < rounds; ++round) {  // the first round warms up
        check(cudaEventRecord(begin, stream), "cudaEventRecord");
        for (int i = 0; i < calls; ++i) call(i);
        check(cudaEventRecord(end, stream), "cudaEventRecord");
        check(cudaEventSynchronize(end), "cudaEventSynchronize");
        float ms = 0;
        check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
        if (round >= 0) times.push_back(1000.0 * ms / calls);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

/// Bytes a second that a copy within the device's memory moves, reads and writes counted.
inline double measure_bandwidth() {
    constexpr size_t kBytes = size_t{512} << 20;
    const Buffer a(kBytes, 0), b(kBytes, 0);
    const double us = time_us(
        [&](int) { check(cudaMemcpyAsync(b.get(), a.get(), kBytes, cudaMemcpyDeviceToDevice, nullptr), "copy"); }, 10,
        5, nullptr);
    return 2.0 * kBytes / (us * 1e-6);
}

/// A JSON object with the time of a case.  Buffers rotate so that the L2 cache does not serve the features.
inline std::string time_topk(const TopKCase& c, const TopKCall& call, double bandwidth, std::mt19937_64& random) {
    const auto rows = static_cast<size_t>(c.batch);
    const size_t row_bytes = static_cast<size_t>(c.width) * dtype_bytes(c.features_dtype);
    const size_t features = rows * static_cast<size_t>(c.tokens) * row_bytes;
    const std::vector<uint32_t> bits(random_scores(rows * static_cast<size_t>(c.tokens), c.scores_dtype, random));
    std::vector<unsigned char> scores(bits.size() * dtype_bytes(c.scores_dtype));
    for (size_t i = 0; i < bits.size(); ++i) {
        // Softmax-like: distinct and below one.
        const float value = static_cast<float>(bits[i] % 65536) / 65536 / 100;
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        const uint32_t stored = c.scores_dtype == TRTPRUNE_FLOAT32 ? wide : wide >> 16;
        std::memcpy(&scores[i * dtype_bytes(c.scores_dtype)], &stored, dtype_bytes(c.scores_dtype));
    }
    const size_t copies = std::clamp<size_t>((size_t{256} << 20) / features + 1, 1, 64);
    std::vector<Buffer> in, score, out, index;
    for (size_t i = 0; i < copies; ++i) {
        in.emplace_back(features, 0);
        score.emplace_back(scores.data(), scores.size(), 0);
        out.emplace_back(rows * static_cast<size_t>(c.keep) * row_bytes, 0);
        index.emplace_back(rows * static_cast<size_t>(c.keep) * 8, 0);
    }
    cudaStream_t stream;
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    const double us = time_us(
        [&](int i) {
            const auto at = static_cast<size_t>(i) % copies;
            if (call(c, score[at].get(), in[at].get(), out[at].get(), static_cast<int64_t*>(index[at].get()), stream))
                throw std::runtime_error("a call failed while timing");
        },
        200, 7, stream);
    cudaStreamDestroy(stream);
    const double bytes = static_cast<double>(scores.size()) +
                         2.0 * static_cast<double>(rows * static_cast<size_t>(c.keep) * row_bytes) +
                         8.0 * static_cast<double>(rows * static_cast<size_t>(c.keep));
    char line[128];
    std::snprintf(line, sizeof(line), ", \"us\": %.3f, \"floor_us\": %.3f, \"bytes\": %.0f}", us,
                  bytes / bandwidth * 1e6, bytes);
    return "{" + text(c) + line;
}

/// Visual tokens of images: one, and the most that LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision have.
constexpr int64_t kImages[] = {1, 576, 2928, 8765};

struct Options {
    int cases = 400;
    int64_t max_tokens = 32768;
    uint64_t seed = 1;
    bool time = true;
};

/// Reads --cases N, --max-tokens N, --seed N and --no-time; exits with 2 on anything else.
inline Options read_options(int argc, char** argv, int first) {
    Options options;
    for (int i = first; i < argc; ++i) {
        const std::string name = argv[i];
        const bool has_value = i + 1 < argc;
        if (name == "--cases" && has_value) {
            options.cases = std::atoi(argv[++i]);
        } else if (name == "--max-tokens" && has_value) {
            options.max_tokens = std::atoll(argv[++i]);
        } else if (name == "--seed" && has_value) {
            options.seed = std::strtoull(argv[++i], nullptr, 10);
        } else if (name == "--no-time") {
            options.time = false;
        } else {
            std::fprintf(stderr, "error: unknown option %s; there are --cases N, --max-tokens N, --seed N, --no-time\n",
                         argv[i]);
            std::exit(2);
        }
    }
    return options;
}

/// Exits with 1, saying why, where there is no GPU.
inline void require_gpu() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) return;
    const char* reason = error == cudaSuccess ? "none found" : cudaGetErrorString(error);
    std::fprintf(stderr, "error: this needs a GPU: %s\n", reason);
    std::printf("{\"error\": \"no GPU: %s\"}\n", reason);
    std::exit(1);
}

/// Proves and times; prints JSON on one line; returns the program's exit status.
inline int run(const std::string& subject, const TopKCall& topk, const MaxMinCall& maxmin, const Options& options) {
    std::mt19937_64 random(options.seed);
    std::string failures, times;
    int failed = 0;
    const auto fail = [&](const std::string& what, const std::string& why) {
        failures += (failed++ ? ", " : "") + ("{" + what + ", \"why\": \"" + why + "\"}");
    };
    for (int i = 0; i < options.cases; ++i) {
        TopKCase c{};
        c.scores_dtype = static_cast<int>(random() % 3);
        c.features_dtype = static_cast<int>(random() % 3);
        c.batch = 1 + static_cast<int64_t>(random() % 3);
        const uint64_t largest[] = {32, 700, 4097, 32768};
        c.tokens = 1 + static_cast<int64_t>(random() % largest[random() % 4]);
        if (i < 4) c.tokens = kImages[i];
        c.tokens = std::min(c.tokens, options.max_tokens);
        c.keep = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(c.tokens));
        const uint64_t widest =
            std::max<uint64_t>(2, std::min<uint64_t>(4100, 2000000 / static_cast<uint64_t>(c.tokens)));
        c.width = 1 + static_cast<int64_t>(random() % widest);
        if (random() % 2 == 0) c.width = (c.width + 7) / 8 * 8;
        const std::string why = prove_topk(c, topk, random);
        if (!why.empty()) fail(text(c), why);
    }
    for (int i = 0; i < options.cases / 8; ++i) {
        MaxMinCase c{1 + static_cast<int64_t>(random() % 2), 1 + static_cast<int64_t>(random() % 1300), 0,
                     static_cast<int>(random() % 2)};
        if (i == 0) c = {1, kImages[3], 0, c.mode};
        c.tokens = std::min(c.tokens, options.max_tokens);
        c.steps = static_cast<int64_t>(random() % static_cast<uint64_t>(c.tokens));
        if (i == 0) c.steps = std::min<int64_t>(c.tokens, 64);
        const std::string why = prove_maxmin(c, maxmin, random);
        if (!why.empty()) {
            fail("\"tokens\": " + std::to_string(c.tokens) + ", \"steps\": " + std::to_string(c.steps) +
                     ", \"mode\": " + std::to_string(c.mode),
                 why);
        }
    }
    double bandwidth = 0;
    if (options.time) {
        bandwidth = measure_bandwidth();
        const int64_t shapes[][4] = {{1, 576, 4096, 64},    {1, 576, 4096, 128},   {1, 576, 4096, 192},
                                     {1, 576, 4096, 576},   {8, 576, 4096, 192},   {1, 2880, 4096, 640},
                                     {1, 8765, 3584, 640},  {1, 4096, 4096, 1024}, {1, 8192, 4096, 2048}, {1, 32768, 1024, 3840}};
        for (const auto& s : shapes) {
            const TopKCase c{TRTPRUNE_FLOAT32, TRTPRUNE_BFLOAT16, s[0], s[1], s[2], s[3]};
            times += (times.empty() ? "" : ", ") + time_topk(c, topk, bandwidth, random);
        }
    }
    cudaDeviceProp device{};
    check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
    std::printf("{\"subject\": \"%s\", \"device\": \"%s\", \"sm\": \"%d.%d\", \"seed\": %llu, \"cases\": %d, ",
                subject.c_str(), device.name, device.major, device.minor, static_cast<unsigned long long>(options.seed),
                options.cases + options.cases / 8);
    std::printf("\"failed\": %d, \"failures\": [%s], \"copy_bandwidth_gb_s\": %.1f, \"times\": [%s]}\n", failed,
                failures.c_str(), bandwidth / 1e9, times.c_str());
    return failed == 0 ? 0 : 1;
}

}  // namespace trtprune::harness
