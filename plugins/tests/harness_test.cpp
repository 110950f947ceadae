// The harness without a GPU: "device" memory is the host's, and the kernels run in the emulator.  Shows that the
// harness accepts what is right and, with a mistake named, that it finds it.
//
//     harness_test MISTAKE [--cases N] [--max-tokens N] [--seed N] [--no-time]
//
// MISTAKE is one of none, index, features, margin, tie, close, error.
#include "harness.hpp"

#include <memory>

// -- as much of a CUDA runtime as the harness uses ----------------------------------------------------------------

extern "C" {
cudaError_t cudaMalloc(void** memory, size_t bytes) {
    *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    return *memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* memory) {
    std::free(memory);
    return cudaSuccess;
}
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
    std::memset(memory, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaDeviceSynchronize() {
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t*) {
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t*) {
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
    *ms = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    std::strcpy(properties->name, "emulated");
    return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) {
    return "emulated";
}

const char* emulate_topk_gather(const void* scores, int dtype, const void* features, int64_t batch, int64_t tokens,
                                int64_t keep, int64_t row_bytes, void* kept, int64_t* indices, uint64_t seed,
                                int launches, int shares);
const char* emulate_maxmin_select(const float* similarity, const float* close, int64_t batch, int64_t tokens,
                                  int64_t steps, int mode, float* close_out, int32_t* picks,
                                  const int64_t* device_steps, uint64_t seed);
}

int main(int argc, char** argv) {
    using namespace trtprune::harness;
    const std::string mistake = argc > 1 ? argv[1] : "none";
    const Options options = read_options(argc, argv, 2);
    const auto topk = [&](const TopKCase& c, const void* scores, const void* features, void* kept, int64_t* indices,
                          cudaStream_t) {
        const auto row_bytes = c.width * static_cast<int64_t>(dtype_bytes(c.features_dtype));
        const std::string problem = emulate_topk_gather(scores, c.scores_dtype, features, c.batch, c.tokens, c.keep,
                                                        row_bytes, kept, indices, 1, 0, 0);
        if (!problem.empty()) throw std::runtime_error(problem);
        const auto last = c.batch * c.keep - 1;
        if (mistake == "index") ++indices[last];
        if (mistake == "features") static_cast<char*>(kept)[(last + 1) * row_bytes - 1] ^= 1;
        if (mistake == "margin") static_cast<char*>(kept)[-1] = 0;
        if (mistake == "tie" && c.tokens > c.keep) {  // what a selection without an order of ties may give
            for (int64_t i = 0; i < c.keep; ++i) indices[i] = c.tokens - c.keep + i;
        }
        return mistake == "error" ? 1 : 0;
    };
    const auto maxmin = [&](const MaxMinCase& c, const float* similarity, const float* close, float* close_out,
                            cudaStream_t) {
        const std::string problem = emulate_maxmin_select(similarity, close, c.batch, c.tokens, c.steps, c.mode,
                                                          close_out, nullptr, nullptr, 1);
        if (!problem.empty()) throw std::runtime_error(problem);
        if (mistake == "close") close_out[c.tokens - 1] = 1e30f;
        return 0;
    };
    try {
        return run("emulated kernels", topk, maxmin, options);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
