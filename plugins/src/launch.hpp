// What the plugins call: the kernels, compiled by nvcc in kernels.cu, behind functions that any compiler can call.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "trtprune/kernels.h"

namespace trtprune {

/// trtprune_maxmin_select() with the number of steps in device memory, int64, where it may depend on other tensors.
cudaError_t launch_maxmin_select(const float* similarity, const float* close, int64_t batch, int64_t tokens,
                                 const int64_t* device_steps, int mode, float* close_out, cudaStream_t stream);

constexpr int64_t kTopKGatherTokens = 32768;
constexpr int64_t kMaxMinSelectTokens = 16384;

}  // namespace trtprune
