#pragma once

/**
 * \file
 * The C interface of trtprune, for C and for languages that call it: C#, Rust, Java, Python's ctypes.
 *
 * - Objects are handles.  Whoever receives one frees it with its `..._free`; NULL is allowed there.
 * - A handle that was freed, or is of another kind, or no handle at all, is an error and never a crash.
 * - Calls that can fail return a code, 0 for success.  Their last argument receives an error object with message and
 *   hint, or NULL; it may be NULL itself.  Output arguments are NULL after a failure.
 * - Texts are UTF-8 and end with a NUL.  A text or array that a function returns belongs to the handle it was asked of,
 *   and lives as long as that handle.
 * - Optional settings are pointers; NULL leaves a setting to the directory.  A structure of settings starts with its
 * own size, by which later versions recognise earlier programs: `trtprune_generate_options options = {sizeof options};`
 * - A model serves one thread at a time; a second one receives TRTPRUNE_BUSY.  Images and results may be shared.
 */

#include <stddef.h>
#include <stdint.h>

#include <trtprune/export.hpp>

#ifdef __cplusplus
extern "C" {
#endif

/** The version of this interface; it changes when a program must be compiled anew. */
#define TRTPRUNE_ABI_VERSION 1

/** What a call returns. */
enum {
    TRTPRUNE_OK = 0,
    TRTPRUNE_INPUT = 1,      /**< an image, prompt, setting or handle that cannot be used */
    TRTPRUNE_BUDGET = 2,     /**< a token budget that this build cannot serve */
    TRTPRUNE_ENGINE_DIR = 3, /**< an engine directory that is damaged, foreign, too new, or of another backend */
    TRTPRUNE_BACKEND = 4,    /**< a library, provider or device that is missing or refuses the work */
    TRTPRUNE_BUSY = 5,       /**< a second call while one is running */
    TRTPRUNE_STOPPED = 6,    /**< a callback that failed */
    TRTPRUNE_INTERNAL = 7    /**< a fault of trtprune itself, or no memory */
};

typedef struct trtprune_error trtprune_error;
typedef struct trtprune_image trtprune_image;
typedef struct trtprune_vlm trtprune_vlm;
typedef struct trtprune_conversation trtprune_conversation;
typedef struct trtprune_result trtprune_result;

/** TRTPRUNE_ABI_VERSION of the library that runs, to be compared with the header's. */
TRTPRUNE_API uint32_t trtprune_abi_version(void);

/** The version of the library, such as "0.1.0". */
TRTPRUNE_API const char* trtprune_version(void);

/* -- errors ------------------------------------------------------------------------------------------------------ */

/** The code of an error, as the call returned it; -1 for no such handle. */
TRTPRUNE_API int32_t trtprune_error_code(const trtprune_error* error);

/** What is wrong, one line; NULL for no such handle. */
TRTPRUNE_API const char* trtprune_error_message(const trtprune_error* error);

/** What to change, one line, may be empty; NULL for no such handle. */
TRTPRUNE_API const char* trtprune_error_hint(const trtprune_error* error);

/** TRTPRUNE_INPUT for a handle that was freed before or is none. */
TRTPRUNE_API int32_t trtprune_error_free(trtprune_error* error);

/* -- images ------------------------------------------------------------------------------------------------------ */

/** Limits of reading an image. */
typedef struct trtprune_image_options {
    size_t struct_size;        /**< `sizeof(trtprune_image_options)` */
    const int64_t* max_pixels; /**< largest number of pixels; NULL: `$TRTPRUNE_MAX_PIXELS`, or 64 Mi */
    int32_t strict;            /**< not 0: animations are refused, instead of their first frame taken */
} trtprune_image_options;

/** Reads a JPEG, PNG, WebP, BMP or GIF file. */
TRTPRUNE_API int32_t trtprune_image_from_file(const char* path, const trtprune_image_options* options,
                                              trtprune_image** image, trtprune_error** error);

/** The same from the bytes of such a file. */
TRTPRUNE_API int32_t trtprune_image_from_memory(const void* data, size_t size, const trtprune_image_options* options,
                                                trtprune_image** image, trtprune_error** error);

/**
 * Copies pixels in rows from the top, three bytes (red, green, blue) a pixel.
 *
 * `stride` are the bytes from a row to the next; 0: `3 * width`.
 */
TRTPRUNE_API int32_t trtprune_image_from_rgb(const uint8_t* data, int64_t width, int64_t height, int64_t stride,
                                             trtprune_image** image, trtprune_error** error);

/** -1 for no such handle. */
TRTPRUNE_API int64_t trtprune_image_width(const trtprune_image* image);
TRTPRUNE_API int64_t trtprune_image_height(const trtprune_image* image);

/** `height * width * 3` bytes, rows from the top, without gaps; NULL for no such handle. */
TRTPRUNE_API const uint8_t* trtprune_image_data(const trtprune_image* image);
TRTPRUNE_API int32_t trtprune_image_free(trtprune_image* image);

/* -- models ------------------------------------------------------------------------------------------------------ */

/** A setting by name and value. */
typedef struct trtprune_pair {
    const char* name;
    const char* value;
} trtprune_pair;

/** Settings of loading a directory. */
typedef struct trtprune_load_options {
    size_t struct_size;   /**< `sizeof(trtprune_load_options)` */
    const char* provider; /**< "cpu", "cuda", "tensorrt"; NULL: the build's own */
    int32_t threads;      /**< processor threads; 0: all that the process may use */
    const char* verify;   /**< level of the file checks: "auto", "none", "fast", "full"; NULL: "auto" */
    const trtprune_pair* provider_options; /**< as `--provider-option` of the command line */
    size_t provider_option_count;
    const char* library; /**< the ONNX Runtime library to load; NULL: `$TRTPRUNE_ONNXRUNTIME`, or the system's */
} trtprune_load_options;

/** Facts of a loaded directory; texts belong to the model. */
typedef struct trtprune_info {
    size_t struct_size; /**< `sizeof(trtprune_info)`, set by the caller */
    const char* model_id;
    const char* family;
    const char* backend;
    const char* provider;
    const char* dtype;
    const char* weight_dtype; /**< empty: not quantised */
    const char* method;
    int64_t keep;
    int64_t keep_least;
    int64_t keep_most;
    int64_t visual_tokens_least; /**< of an image */
    int64_t visual_tokens_most;
    int64_t capacity;       /**< tokens of a request, prompt and answer */
    int64_t max_batch_size; /**< 0: any */
} trtprune_info;

/** Settings of an answer.  What is NULL comes from the checkpoint's `generation_config.json`, see docs/python.md. */
typedef struct trtprune_generate_options {
    size_t struct_size;       /**< `sizeof(trtprune_generate_options)` */
    const int64_t* keep;      /**< visual tokens to keep of each image */
    const double* keep_ratio; /**< the same as a share of each image's visual tokens */
    const int64_t* max_new_tokens;
    const double* temperature;
    const int64_t* top_k;
    const double* top_p;
    const double* repetition_penalty;
    const uint64_t* seed;
    const char* const* stop; /**< texts that end the answer */
    size_t stop_count;
    const char* system; /**< a system prompt */
    int32_t ignore_eos; /**< not 0: go on to `max_new_tokens` whatever the model says */
    int32_t raw_prompt; /**< not 0: the prompt as it is, with a placeholder for each image */
} trtprune_generate_options;

/** One row of a batch.  What is NULL comes from the options of the call. */
typedef struct trtprune_request {
    size_t struct_size; /**< `sizeof(trtprune_request)` */
    const trtprune_image* const* images;
    size_t image_count;
    const char* prompt;
    const int64_t* keep;
    const double* keep_ratio;
    const char* system;
    int32_t raw_prompt;
    const int64_t* max_new_tokens;
    const uint64_t* seed;
} trtprune_request;

/**
 * Receives each piece of an answer's text, which ends with a NUL behind `length` bytes.
 *
 * Returns 1 to go on, 0 to end the answer here, a negative number for a failure, which ends the call with
 * TRTPRUNE_STOPPED.  It runs in the thread of the call, and may not call the same model.
 */
typedef int32_t (*trtprune_text_callback)(const char* piece, size_t length, void* user_data);

/** Opens an engine directory.  `options` may be NULL. */
TRTPRUNE_API int32_t trtprune_vlm_load(const char* path, const trtprune_load_options* options, trtprune_vlm** vlm,
                                       trtprune_error** error);

/** Fills `info`, as far as its `struct_size` goes. */
TRTPRUNE_API int32_t trtprune_vlm_info(const trtprune_vlm* vlm, trtprune_info* info, trtprune_error** error);

/** Answers a question about one image, or several together.  `options` and `on_text` may be NULL. */
TRTPRUNE_API int32_t trtprune_vlm_generate(trtprune_vlm* vlm, const trtprune_image* const* images, size_t image_count,
                                           const char* prompt, const trtprune_generate_options* options,
                                           trtprune_text_callback on_text, void* user_data, trtprune_result** result,
                                           trtprune_error** error);

/** Answers requests as one batch.  `results` has room for `request_count` handles. */
TRTPRUNE_API int32_t trtprune_vlm_generate_batch(trtprune_vlm* vlm, const trtprune_request* const* requests,
                                                 size_t request_count, const trtprune_generate_options* options,
                                                 trtprune_result** results, trtprune_error** error);

/** Frees the model as soon as no call and no conversation uses it. */
TRTPRUNE_API int32_t trtprune_vlm_free(trtprune_vlm* vlm);

/* -- conversations ----------------------------------------------------------------------------------------------- */

/** Starts a conversation of several questions about the same images.  `system` may be NULL. */
TRTPRUNE_API int32_t trtprune_vlm_chat(trtprune_vlm* vlm, const trtprune_image* const* images, size_t image_count,
                                       const char* system, trtprune_conversation** conversation,
                                       trtprune_error** error);

/** Asks the next question.  With `repick` 0 the selection of the first question stays. */
TRTPRUNE_API int32_t trtprune_conversation_ask(trtprune_conversation* conversation, const char* prompt,
                                               const trtprune_generate_options* options, int32_t repick,
                                               trtprune_text_callback on_text, void* user_data,
                                               trtprune_result** result, trtprune_error** error);
TRTPRUNE_API int32_t trtprune_conversation_free(trtprune_conversation* conversation);

/* -- results: NULL or -1 for no such handle, or an index out of range -------------------------------------------- */

TRTPRUNE_API const char* trtprune_result_text(const trtprune_result* result);
/** "stop", "length" or "callback". */
TRTPRUNE_API const char* trtprune_result_finish_reason(const trtprune_result* result);
/** The pruning method. */
TRTPRUNE_API const char* trtprune_result_method(const trtprune_result* result);
/** The object that `trtprune run --json` prints. */
TRTPRUNE_API const char* trtprune_result_json(const trtprune_result* result);
/** All chosen ids; `count` receives their number and may be NULL. */
TRTPRUNE_API const int64_t* trtprune_result_token_ids(const trtprune_result* result, size_t* count);
/** Of all images together, before and after pruning. */
TRTPRUNE_API int64_t trtprune_result_visual_tokens(const trtprune_result* result);
TRTPRUNE_API int64_t trtprune_result_kept_tokens(const trtprune_result* result);
TRTPRUNE_API int64_t trtprune_result_image_count(const trtprune_result* result);
/** Ascending indices of an image's kept tokens. */
TRTPRUNE_API const int64_t* trtprune_result_kept_indices(const trtprune_result* result, size_t image, size_t* count);
/** Numbers of an image's tokens by segment, if the decoder prunes; else none. */
TRTPRUNE_API const int64_t* trtprune_result_segment_tokens(const trtprune_result* result, size_t image, size_t* count);
TRTPRUNE_API int64_t trtprune_result_prompt_tokens(const trtprune_result* result);
TRTPRUNE_API int64_t trtprune_result_kv_cache_bytes(const trtprune_result* result);
TRTPRUNE_API double trtprune_result_tokens_per_second(const trtprune_result* result);
TRTPRUNE_API double trtprune_result_tokens_per_layer(const trtprune_result* result);
TRTPRUNE_API double trtprune_result_time_to_first_token_ms(const trtprune_result* result);
/** Milliseconds of a stage such as "vision", "prefill", "decode", "total"; -1 for one that this answer did not have. */
TRTPRUNE_API double trtprune_result_timing_ms(const trtprune_result* result, const char* stage);
TRTPRUNE_API int32_t trtprune_result_free(trtprune_result* result);

#ifdef __cplusplus
}
#endif
