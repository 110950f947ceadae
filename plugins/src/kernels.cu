// The C interface: chooses the kernel for the dtypes.
#include "launch.hpp"
#include "trtprune/kernels.h"
#include "trtprune/maxmin_select.cuh"
#include "trtprune/topk_gather.cuh"

#ifndef TRTPRUNE_VERSION
#error "define TRTPRUNE_VERSION, the project's version as a string"
#endif

namespace {

int64_t feature_bytes(int dtype) {
    switch (dtype) {
        case TRTPRUNE_FLOAT32:
            return 4;
        case TRTPRUNE_FLOAT16:
        case TRTPRUNE_BFLOAT16:
            return 2;
        default:
            return 0;
    }
}

}  // namespace

int trtprune_topk_gather(const void* scores, int scores_dtype, const void* features, int features_dtype, int64_t batch,
                         int64_t tokens, int64_t width, int64_t keep, void* kept, int64_t* indices, void* /*workspace*/,
                         size_t workspace_bytes, void* stream) {
    constexpr int64_t kMaxWidth = int64_t{1} << 24;  // keeps the product below from overflowing; the plan has the limit
    if (feature_bytes(features_dtype) == 0 || width < 0 || width > kMaxWidth ||
        workspace_bytes < trtprune::topk_gather_workspace(batch, tokens, keep)) {
        return cudaErrorInvalidValue;
    }
    const auto run = [&](auto format) {
        return trtprune::topk_gather<decltype(format)>(scores, features, batch, tokens, keep,
                                                       width * feature_bytes(features_dtype), kept, indices,
                                                       static_cast<cudaStream_t>(stream));
    };
    switch (scores_dtype) {
        case TRTPRUNE_FLOAT32:
            return run(trtprune::Float32{});
        case TRTPRUNE_FLOAT16:
            return run(trtprune::Float16{});
        case TRTPRUNE_BFLOAT16:
            return run(trtprune::BFloat16{});
        default:
            return cudaErrorInvalidValue;
    }
}

size_t trtprune_topk_gather_workspace(int64_t batch, int64_t tokens, int64_t keep) {
    return trtprune::topk_gather_workspace(batch, tokens, keep);
}

int trtprune_topk_gather_launches(int64_t tokens) {
    return tokens <= trtprune::kOneLaunchTokens ? 1 : 2;
}

int trtprune_maxmin_select(const float* similarity, const float* close, int64_t batch, int64_t tokens, int64_t steps,
                           int mode, float* close_out, int32_t* picks, void* stream) {
    if (tokens < 1 || tokens > trtprune::kMaxMinTokens || steps < 0 || steps > INT32_MAX) return cudaErrorInvalidValue;
    const trtprune::MaxMinParams p{
        similarity, close, close_out, picks, nullptr, static_cast<int>(steps), static_cast<int>(tokens), mode};
    return trtprune::maxmin_select(p, batch, static_cast<cudaStream_t>(stream));
}

namespace trtprune {

static_assert(kTopKGatherTokens == kMaxTokens && kMaxMinSelectTokens == kMaxMinTokens, "the plugins know the limits");

cudaError_t launch_maxmin_select(const float* similarity, const float* close, int64_t batch, int64_t tokens,
                                 const int64_t* device_steps, int mode, float* close_out, cudaStream_t stream) {
    if (tokens < 1 || tokens > kMaxMinTokens) return cudaErrorInvalidValue;
    const MaxMinParams p{similarity, close, close_out, nullptr, device_steps, 0, static_cast<int>(tokens), mode};
    return maxmin_select(p, batch, stream);
}

}  // namespace trtprune

const char* trtprune_kernels_version() {
    return TRTPRUNE_VERSION;
}

const char* trtprune_error_string(int cuda_error) {
    return cudaGetErrorString(static_cast<cudaError_t>(cuda_error));
}

int trtprune_device_count() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
