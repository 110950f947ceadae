/*
 * Answers a question about an image through the C interface, printing it piece by piece.
 *
 *   answer OUT PICTURE PROMPT [KEEP]
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <trtprune/trtprune.h>

static int32_t show(const char* piece, size_t length, void* user_data) {
    (void)user_data;
    return fwrite(piece, 1, length, stdout) == length ? 1 : -1;
}

/* Prints an error and frees it. */
static void report(trtprune_error* error) {
    const char* hint = trtprune_error_hint(error);
    fprintf(stderr, "error: %s\n", trtprune_error_message(error));
    if (hint != NULL && hint[0] != '\0') fprintf(stderr, "hint:  %s\n", hint);
    trtprune_error_free(error);
}

int main(int count, char** words) {
    trtprune_generate_options options = {0};
    trtprune_error* error = NULL;
    trtprune_image* image = NULL;
    trtprune_vlm* vlm = NULL;
    trtprune_result* result = NULL;
    int64_t keep = 0;
    size_t tokens = 0;
    int status = 1;

    if (count != 4 && count != 5) {
        fprintf(stderr, "usage: answer OUT PICTURE PROMPT [KEEP]\n");
        return 2;
    }
    if (trtprune_abi_version() != TRTPRUNE_ABI_VERSION) {
        fprintf(stderr, "error: trtprune %s has another interface than this program\n", trtprune_version());
        return 1;
    }
    options.struct_size = sizeof options;
    if (count == 5) {
        keep = strtoll(words[4], NULL, 10);
        options.keep = &keep;
    }

    if (trtprune_image_from_file(words[2], NULL, &image, &error) != TRTPRUNE_OK ||
        trtprune_vlm_load(words[1], NULL, &vlm, &error) != TRTPRUNE_OK ||
        trtprune_vlm_generate(vlm, (const trtprune_image* const*)&image, 1, words[3], &options, show, NULL, &result,
                              &error) != TRTPRUNE_OK) {
        report(error);
    } else {
        trtprune_result_token_ids(result, &tokens);
        printf("\n%zu tokens, %" PRId64 " of %" PRId64 " visual tokens kept, first token after %.0f ms\n", tokens,
               trtprune_result_kept_tokens(result), trtprune_result_visual_tokens(result),
               trtprune_result_time_to_first_token_ms(result));
        status = 0;
    }
    trtprune_result_free(result);
    trtprune_vlm_free(vlm);
    trtprune_image_free(image);
    return status;
}
