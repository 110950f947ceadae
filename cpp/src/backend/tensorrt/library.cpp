#include "backend/tensorrt/library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <trtprune/error.hpp>

#include "files/printable.hpp"

namespace trtprune::backend::tensorrt {

namespace {

constexpr std::size_t longest_message = 400;
constexpr const char* install_hint =
    "install TensorRT's libraries, or set TRTPRUNE_TENSORRT to its libnvinfer.so; provider=cpu runs the graphs";

}  // namespace

Log& Log::instance() {
    static auto* log = new Log();  // never freed: TensorRT may log while the process ends
    return *log;
}

void Log::log(Severity severity, const char* message) noexcept {
    if (severity != Severity::kERROR && severity != Severity::kINTERNAL_ERROR) return;
    try {
        const std::string line = files::one_line(message, longest_message);
        const std::lock_guard<std::mutex> lock(mutex_);
        for (MessageRecord* record : open_) record->errors_.push_back(line);
    } catch (const std::exception&) {  // no memory for a message: the call's own result still tells
    }
}

MessageRecord::MessageRecord() {
    Log& log = Log::instance();
    const std::lock_guard<std::mutex> lock(log.mutex_);
    log.open_.push_back(this);
}

MessageRecord::~MessageRecord() {
    Log& log = Log::instance();
    const std::lock_guard<std::mutex> lock(log.mutex_);
    log.open_.erase(std::remove(log.open_.begin(), log.open_.end(), this), log.open_.end());
}

bool MessageRecord::errors() const {
    const std::lock_guard<std::mutex> lock(Log::instance().mutex_);
    return !errors_.empty();
}

std::string MessageRecord::why(const std::string& otherwise) const {
    const std::lock_guard<std::mutex> lock(Log::instance().mutex_);
    return errors_.empty() ? otherwise : errors_.front();
}

Library::Library(const std::string& path) : path_(path) {
    if (path_.empty()) {
        const char* named = std::getenv("TRTPRUNE_TENSORRT");
        path_ = named != nullptr && *named != '\0' ? named : "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);
    }
    handle_ = dlopen(path_.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (handle_ == nullptr) throw BackendError(std::string("TensorRT does not load: ") + dlerror(), install_hint);
    try {
        using Number = std::int32_t (*)();
        int major = 0;
        const char* parts[] = {"getInferLibMajorVersion", "getInferLibMinorVersion", "getInferLibPatchVersion",
                               "getInferLibBuildVersion"};
        for (const char* part : parts) {
            const int number = reinterpret_cast<Number>(symbol(part))();
            if (version_.empty()) major = number;
            version_ += (version_.empty() ? "" : ".") + std::to_string(number);
        }
        if (major != NV_TENSORRT_MAJOR) {
            const std::string wanted = std::to_string(NV_TENSORRT_MAJOR);
            throw BackendError(
                path_ + " is TensorRT " + version_ + "; this program was compiled for TensorRT " + wanted,
                "install TensorRT " + wanted + ", or compile trtprune with the headers of TensorRT " +
                    std::to_string(major));
        }
    } catch (...) {
        dlclose(handle_);
        throw;
    }
}

// The library stays loaded: it has threads and the log of the process.
Library::~Library() = default;

void* Library::symbol(const char* name) const {
    void* found = dlsym(handle_, name);
    if (found == nullptr) throw BackendError(path_ + " is not TensorRT: it has no " + name, install_hint);
    return found;
}

std::unique_ptr<nvinfer1::IRuntime> Library::make_runtime() {
    using Make = void* (*)(void*, std::int32_t);
    const MessageRecord record;
    // As the header's inline createInferRuntime, whose symbol would have to be linked.
    void* runtime =
        reinterpret_cast<Make>(symbol("createInferRuntime_INTERNAL"))(&Log::instance(), NV_TENSORRT_VERSION);
    if (runtime == nullptr || record.errors()) throw BackendError("TensorRT makes no runtime: " + record.why());
    return std::unique_ptr<nvinfer1::IRuntime>(static_cast<nvinfer1::IRuntime*>(runtime));
}

nvinfer1::IPluginRegistry* Library::plugins() {
    using Get = nvinfer1::IPluginRegistry* (*)();
    return reinterpret_cast<Get>(symbol("getPluginRegistry"))();
}

}  // namespace trtprune::backend::tensorrt
