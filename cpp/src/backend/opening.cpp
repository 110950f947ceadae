#include <trtprune/error.hpp>
#include <trtprune/vlm.hpp>

#include "arguments.hpp"
#include "backend/exact_products.hpp"
#include "backend/onnxruntime/backend.hpp"
#include "backend/session.hpp"
#ifdef TRTPRUNE_TENSORRT
#include "backend/tensorrt/backend.hpp"
#endif
#include "engine_dir/schema.hpp"

namespace trtprune::backend {

using arguments::arg;

namespace {

/// Refuses a build whose products of 8-bit integers do not run, or run wrong.
void check_int8(const engine_dir::EngineDir& config, const std::string& provider, const LoadOptions& options) {
    const auto form = config.lowering.find("activations");
    if (form == config.lowering.end() || form->second != "int8") return;
    const std::string built = "built with " + arg("activation_dtype", "int8");
    const std::string again = "a build with " + arg("weight_dtype", "int8") + " alone";
    if (provider != "cpu") {
        throw BackendError(config.root + ": " + built +
                               ", whose products are ONNX Runtime's on a CPU, not those of provider " + provider,
                           again);
    }
    const auto activations = options.provider_options.find("activations");
    if (activations != options.provider_options.end() && activations->second == "float32") {
        throw BackendError(std::string("provider_options={'activations': 'float32'}") + ": " + built +
                               ", its graphs round activations themselves",
                           again);
    }
    if (!exact_products()) {
        throw BackendError(config.root + ": " + built +
                               ", whose products this processor adds up in 16 bits, where they overflow (it has no VNNI)",
                           again + " is the next best here");
    }
}

}  // namespace

std::unique_ptr<Backend> open_backend(const engine_dir::EngineDir& config, const LoadOptions& options) {
    std::string provider = options.provider;
    const bool graphs = config.backend == "onnxruntime";
    if (provider.empty() && graphs) {
        const auto built = config.built_with.find("provider");
        provider = built == config.built_with.end() ? "cpu" : built->second;
    }
    if (provider == "cpu" || provider == "cuda") {
        check_int8(config, provider, options);
        return std::make_unique<onnxruntime::OrtBackend>(provider, options.threads, options.provider_options,
                                                         options.library);
    }
    if (provider == "openvino") {
        throw BackendError(arg("provider", provider) + ": OpenVINO runs from Python only",
                           arg("provider", "cpu") + " runs the same graphs in ONNX Runtime");
    }
    if (!provider.empty() && provider != "tensorrt") {
        throw BackendError(arg("provider", provider) + ": unknown", "one of cpu, cuda, tensorrt");
    }
    if (graphs) {
        throw BackendError(arg("provider", provider) + ": " + config.root + " holds no engines",
                           "build with " + arg("backend", "tensorrt") + ", or " + arg("provider", "cuda"));
    }
    if (options.threads != 0) {
        throw BackendError(arg("threads", options.threads) + ": " + config.root + " holds " + config.backend +
                               " engines, which run on the GPU",
                           "leave it out, or " + arg("provider", "cpu") + " to run the graphs in ONNX Runtime");
    }
    if (config.backend != "tensorrt") {
        throw BackendError(config.root + ": holds " + config.backend + " engines, which run from Python only",
                           arg("provider", "cpu") + " runs the graphs in ONNX Runtime");
    }
#ifdef TRTPRUNE_TENSORRT
    return tensorrt::open(config, options);
#else
    throw BackendError(
        config.root + ": holds tensorrt engines, and this library was built without TensorRT",
        arg("provider", "cpu") +
            " runs the graphs in ONNX Runtime; -DTRTPRUNE_TENSORRT=ON builds a library that runs engines");
#endif
}

}  // namespace trtprune::backend
