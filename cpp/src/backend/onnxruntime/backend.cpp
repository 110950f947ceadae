#include "backend/onnxruntime/backend.hpp"

#include <trtprune/error.hpp>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "backend/onnxruntime/external.hpp"
#include "backend/onnxruntime/session.hpp"
#include "backend/threads.hpp"
#include "engine_dir/schema.hpp"
#include "files/reading.hpp"

namespace trtprune::backend::onnxruntime {

using arguments::arg;

namespace {

// Long enough for the gap between two operators.  Threads of a segment that spin longer take the processors from the
// next segment: a token then takes a fifth longer.
constexpr const char* brief_spin_us = "50";
// A graph for OpenVINO holds its weights.
constexpr std::size_t largest_graph = std::size_t{1} << 40;

const std::vector<std::string>& known_options(const std::string& provider) {
    static const std::vector<std::string> cpu{"activations"}, cuda{"device_id", "gpu_mem_limit"};
    return provider == "cpu" ? cpu : cuda;
}

void check_options(const std::string& provider, const std::map<std::string, std::string>& options) {
    const std::vector<std::string>& known = known_options(provider);
    std::string list;
    for (const std::string& name : known) list += (list.empty() ? "" : ", ") + name;
    for (const auto& [name, value] : options) {
        bool found = false;
        for (const std::string& option : known) found = found || option == name;
        if (!found) {
            throw BackendError("provider_options " + name + ": provider " + provider + " has no such option",
                               "it has: " + list);
        }
        if (name == "activations" && value != "int8" && value != "float32") {
            throw BackendError("provider_options={'activations': '" + value + "'}: unknown", "int8 or float32");
        }
    }
}

std::string content_of(const std::filesystem::path& path) {
    std::string reason = "missing";
    try {
        if (auto content = files::read_bounded(path.string(), largest_graph)) return std::move(*content);
    } catch (const files::ReadError& error) {
        reason = error.what();
    }
    throw EngineDirError(path.string() + ": cannot be read: " + reason, "build it again");
}

}  // namespace

OrtBackend::OrtBackend(const std::string& provider, int threads, const std::map<std::string, std::string>& options,
                       const std::string& library)
    : name_(provider), threads_(threads == 0 ? available_threads() : threads), options_(options) {
    if (threads < 0) throw BackendError(arg("threads", threads) + ": must be at least 1");
    check_options(provider, options);
    library_ = std::make_shared<const Library>(library);
    if (provider == "cuda" && !library_->has_provider("CUDAExecutionProvider")) {
        throw BackendError(arg("provider", "cuda") + ": this onnxruntime has no CUDA provider",
                           "install the library of onnxruntime-gpu, and name it in LoadOptions::library or "
                           "TRTPRUNE_ONNXRUNTIME");
    }
}

std::unique_ptr<Session> OrtBackend::session(const engine_dir::ComponentInfo& component,
                                             const std::filesystem::path& root) {
    if (component.dtype == "bfloat16" && name_ != "cuda") {
        throw BackendError(
            root.string() + ": built in bfloat16, for which ONNX Runtime's " + name_ + " provider has no kernels",
            "build it with " + arg("dtype", "float32") + ", which computes in it from the same bfloat16 weights");
    }
    const std::filesystem::path path = root / component.onnx;
    const auto [graph, folder] = located(content_of(path), path.parent_path());
    const SessionOptions options = session_options(component, folder.string(), path.string());
    OrtSession* session = nullptr;
    library_->check(
        library_->api().CreateSessionFromArray(library_->env(), graph.data(), graph.size(), options.get(), &session),
        path.string() + ": ONNX Runtime (" + name_ + ") cannot open it: ");
    return std::make_unique<GraphSession>(library_, SessionHandle(session, {library_->api().ReleaseSession}),
                                          component);
}

// Most of the time goes into unpacking and repacking weights, for each component on one thread.
int OrtBackend::opening_threads() const {
    return name_ == "cpu" ? available_threads() : 1;
}

SessionOptions OrtBackend::session_options(const engine_dir::ComponentInfo& component, const std::string& folder,
                                           const std::string& path) const {
    const OrtApi& api = library_->api();
    OrtSessionOptions* raw = nullptr;
    library_->check(api.CreateSessionOptions(&raw));
    SessionOptions options(raw, {api.ReleaseSessionOptions});
    // An embedding lookup is one copy.  Threads of a pool spin for a while after each run.  That helps the decoder, as
    // its next step follows at once; spinning threads of other components or segments would slow it down.
    const bool decoder = component.role == engine_dir::roles::decoder;
    library_->check(api.SetIntraOpNumThreads(raw, component.role == engine_dir::roles::embed ? 1 : threads_));
    library_->check(api.SetInterOpNumThreads(raw, 1));
    add_entry(raw, "session.intra_op.allow_spinning", decoder ? "1" : "0");
    if (decoder && component.segment) add_entry(raw, "session.intra_op.spin_duration_us", brief_spin_us);
    // The error has the reason of a refusal; the log would repeat it on stderr.
    library_->check(api.SetSessionLogSeverityLevel(raw, ORT_LOGGING_LEVEL_FATAL));
    add_entry(raw, "session.model_external_initializers_file_folder_path", folder);
    // Shapes change from call to call (prompt length, batch): memory plans per shape would only accumulate.
    library_->check(api.DisableMemPattern(raw));
    add_provider(raw, path);
    return options;
}

void OrtBackend::add_provider(OrtSessionOptions* options, const std::string& path) const {
    const OrtApi& api = library_->api();
    if (name_ == "cpu") {
        const auto activations = options_.find("activations");
        if (activations != options_.end() && activations->second == "float32") {
            add_entry(options, "session.disable_quant_qdq", "1");
        }
        // DequantizeLinear + MatMul becomes one kernel.  At an accuracy level that keeps activations in float32, that
        // kernel unpacks 8-bit weights in every call, many times slower than float32 weights: 4 it is.  The block size
        // applies to weights with one scale per channel; 64 is 1.5 times as fast as the default of 32.
        add_entry(options, "session.qdq_matmulnbits_accuracy_level", "4");
        add_entry(options, "session.qdq_matmulnbits_block_size", "64");
        return;
    }
    OrtCUDAProviderOptionsV2* raw = nullptr;
    library_->check(api.CreateCUDAProviderOptions(&raw));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, Release<OrtCUDAProviderOptionsV2>> held(
        raw, {api.ReleaseCUDAProviderOptions});
    std::vector<const char*> keys, values;
    for (const auto& [key, value] : options_) {
        keys.push_back(key.c_str());
        values.push_back(value.c_str());
    }
    library_->check(api.UpdateCUDAProviderOptions(raw, keys.data(), values.data(), keys.size()),
                    "provider_options of cuda: ");
    // Operators that run better on the CPU (shape arithmetic) may stay there.
    library_->check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, raw),
                    path + ": the CUDA provider did not load (no GPU, or CUDA and cuDNN libraries are missing): ",
                    arg("provider", "cpu") + " runs without a GPU");
}

void OrtBackend::add_entry(OrtSessionOptions* options, const char* key, const std::string& value) const {
    library_->check(library_->api().AddSessionConfigEntry(options, key, value.c_str()));
}

std::unique_ptr<Step> OrtBackend::step(Session& embed, Session& decoder, Cache& cache) {
    return std::make_unique<HostStep>(embed, decoder, cache);
}

}  // namespace trtprune::backend::onnxruntime
