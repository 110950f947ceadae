// The kernels without TensorRT, through the C interface: proof and times as JSON.
//
//     kernel_bench [--cases N] [--max-tokens N] [--seed N] [--no-time]
#include "harness.hpp"

int main(int argc, char** argv) {
    using namespace trtprune::harness;
    const Options options = read_options(argc, argv, 1);
    require_gpu();
    const auto topk = [](const TopKCase& c, const void* scores, const void* features, void* kept, int64_t* indices,
                         cudaStream_t stream) {
        return trtprune_topk_gather(scores, c.scores_dtype, features, c.features_dtype, c.batch, c.tokens, c.width,
                                    c.keep, kept, indices, nullptr, 0, stream);
    };
    const auto maxmin = [](const MaxMinCase& c, const float* similarity, const float* close, float* close_out,
                           cudaStream_t stream) {
        return trtprune_maxmin_select(similarity, close, c.batch, c.tokens, c.steps, c.mode, close_out, nullptr,
                                      stream);
    };
    try {
        return run("kernels " + std::string(trtprune_kernels_version()), topk, maxmin, options);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
