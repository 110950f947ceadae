/* C interface of libtrtprune_kernels.so: the kernels without TensorRT, for ctypes and for other runtimes.
 *
 * All arrays are C-contiguous device memory.  Calls allocate nothing and do not wait: the work is put on `stream`
 * (a cudaStream_t; null is the default stream).  They return a cudaError_t: 0, or 1 (cudaErrorInvalidValue) for sizes
 * or dtypes that are not supported, or what the launch returned.
 */
#ifndef TRTPRUNE_KERNELS_H_
#define TRTPRUNE_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TRTPRUNE_API __attribute__((visibility("default")))

enum { TRTPRUNE_FLOAT32 = 0, TRTPRUNE_FLOAT16 = 1, TRTPRUNE_BFLOAT16 = 2 };
enum { TRTPRUNE_MAXMIN = 0, TRTPRUNE_MEANSIM = 1 };

/* scores [batch, tokens], features [batch, tokens, width] -> kept [batch, keep, width], indices [batch, keep]
 * ascending; 0 <= keep <= tokens <= 32768, width * sizeof(feature) <= 16 MiB.  `workspace` may be null where
 * trtprune_topk_gather_workspace() is 0. */
TRTPRUNE_API int trtprune_topk_gather(const void* scores, int scores_dtype, const void* features, int features_dtype,
                                      int64_t batch, int64_t tokens, int64_t width, int64_t keep, void* kept,
                                      int64_t* indices, void* workspace, size_t workspace_bytes, void* stream);

/* Bytes of workspace. */
TRTPRUNE_API size_t trtprune_topk_gather_workspace(int64_t batch, int64_t tokens, int64_t keep);

/* Kernels that a call launches: 1 up to 4096 tokens, else 2. */
TRTPRUNE_API int trtprune_topk_gather_launches(int64_t tokens);

/* `steps` times: best = argmin(close), the lowest index of equals; close = max(close, similarity[best]) or
 * close + similarity[best]; close[best] = 3.0e38.  similarity [batch, tokens, tokens] and close [batch, tokens]
 * float32; close_out may be close; picks [batch, steps] in order of selection, or null.  1 <= tokens <= 16384. */
TRTPRUNE_API int trtprune_maxmin_select(const float* similarity, const float* close, int64_t batch, int64_t tokens,
                                        int64_t steps, int mode, float* close_out, int32_t* picks, void* stream);

/* The release of trtprune that this library belongs to. */
TRTPRUNE_API const char* trtprune_kernels_version(void);

TRTPRUNE_API const char* trtprune_error_string(int cuda_error);

/* 0 where no GPU can be used. */
TRTPRUNE_API int trtprune_device_count(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* TRTPRUNE_KERNELS_H_ */
