#include "backend/onnxruntime/library.hpp"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <trtprune/error.hpp>

namespace trtprune::backend::onnxruntime {

namespace {

constexpr const char* variable = "TRTPRUNE_ONNXRUNTIME";
constexpr const char* system_name = "libonnxruntime.so.1";
// The first release with every operator of the graphs.
constexpr std::array<int, 2> oldest{1, 25};
constexpr const char* install =
    "install ONNX Runtime 1.25 or newer, and name its libonnxruntime.so.1 in LoadOptions::library or "
    "TRTPRUNE_ONNXRUNTIME";

std::string path_of(const std::string& path) {
    if (!path.empty()) return path;
    const char* named = std::getenv(variable);
    return named != nullptr && *named != '\0' ? named : system_name;
}

// The first two numbers of a version, as 1.25.0.
std::array<int, 2> release_of(const char* version) {
    std::array<int, 2> numbers{0, 0};
    char* end = nullptr;
    numbers[0] = static_cast<int>(std::strtol(version, &end, 10));
    if (end != nullptr && *end == '.') numbers[1] = static_cast<int>(std::strtol(end + 1, nullptr, 10));
    return numbers;
}

}  // namespace

Library::Library(const std::string& path) {
    const std::string name = path_of(path);
    // It is never unmapped: its threads and thread-local memory would outlive it.
    handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle_ == nullptr) {
        const char* reason = dlerror();
        throw BackendError("ONNX Runtime does not load: " + std::string(reason != nullptr ? reason : name), install);
    }
    try {
        using Base = const OrtApiBase*(ORT_API_CALL*)();
        void* symbol = dlsym(handle_, "OrtGetApiBase");
        if (symbol == nullptr) throw BackendError(name + ": not ONNX Runtime", install);
        Base base = nullptr;
        std::memcpy(&base, &symbol, sizeof base);
        const char* version = base()->GetVersionString();
        if (release_of(version) >= oldest) api_ = base()->GetApi(ORT_API_VERSION);
        if (api_ == nullptr) {
            throw BackendError("onnxruntime " + std::string(version) + " (" + name +
                                   ") is too old for the graphs, which need " + std::to_string(oldest[0]) + "." +
                                   std::to_string(oldest[1]),
                               install);
        }
        // The exception has the reason of a refusal; the log would repeat it on stderr.
        check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "trtprune", &env_));
        check(api_->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &host_));
    } catch (...) {
        if (env_ != nullptr) api_->ReleaseEnv(env_);
        dlclose(handle_);
        throw;
    }
}

Library::~Library() {
    api_->ReleaseMemoryInfo(host_);
    api_->ReleaseEnv(env_);
    dlclose(handle_);
}

bool Library::has_provider(const std::string& name) const {
    char** list = nullptr;
    int count = 0;
    check(api_->GetAvailableProviders(&list, &count));
    bool found = false;
    for (int i = 0; i < count; ++i) found = found || name == list[i];
    check(api_->ReleaseAvailableProviders(list, count));
    return found;
}

void Library::check(OrtStatus* status, const std::string& prefix, const std::string& hint) const {
    if (status == nullptr) return;
    std::string reason = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    reason = reason.substr(0, reason.find('\n')).substr(0, 300);
    throw BackendError(prefix + (reason.empty() ? "failed" : reason), hint);
}

OrtValue* Library::view(const Tensor& array) const {
    OrtValue* value = nullptr;
    check(api_->CreateTensorWithDataAsOrtValue(host_, array.address(), static_cast<std::size_t>(array.nbytes()),
                                               array.shape().data(), array.shape().size(), element_type(array.dtype()),
                                               &value));
    return value;
}

ONNXTensorElementDataType element_type(DType dtype) {
    switch (dtype) {
        case DType::float32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        case DType::float16:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case DType::bfloat16:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
        case DType::int64:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        case DType::int32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        case DType::uint8:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
        case DType::boolean:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    }
    throw BackendError("a tensor of an unknown type");
}

DType dtype_of(ONNXTensorElementDataType type) {
    for (const DType dtype :
         {DType::float32, DType::float16, DType::bfloat16, DType::int64, DType::int32, DType::uint8, DType::boolean}) {
        if (element_type(dtype) == type) return dtype;
    }
    throw BackendError("a graph's output is of a type that is not supported", "build it again");
}

}  // namespace trtprune::backend::onnxruntime
