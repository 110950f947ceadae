#include "backend/tensorrt/cuda.hpp"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <trtprune/error.hpp>
#include <vector>

namespace trtprune::backend::tensorrt {

namespace {

constexpr const char* cpu_hint = "provider=cpu runs the graphs of the same directory in ONNX Runtime";
constexpr int oldest_runtime = 12000;

}  // namespace

/// The functions of the CUDA runtime library, loaded once for each driver.
struct Driver::Library {
    Library();
    ~Library() { dlclose(handle); }
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;

    template <typename F>
    void find(F& function, const char* name) {
        function = reinterpret_cast<F>(dlsym(handle, name));
        if (function == nullptr) {
            dlclose(handle);
            throw BackendError(path + " is not the CUDA runtime: it has no " + name, cpu_hint);
        }
    }

    std::string path;
    void* handle = nullptr;
    decltype(&cudaRuntimeGetVersion) runtime_version = nullptr;
    decltype(&cudaGetDeviceCount) device_count = nullptr;
    decltype(&cudaSetDevice) set_device = nullptr;
    decltype(&cudaDeviceGetAttribute) attribute = nullptr;
    decltype(&cudaStreamCreateWithFlags) create_stream = nullptr;
    decltype(&cudaStreamDestroy) destroy_stream = nullptr;
    decltype(&cudaStreamSynchronize) synchronize = nullptr;
    cudaError_t (*memory_info)(std::size_t*, std::size_t*) = nullptr;
    cudaError_t (*allocate)(void**, std::size_t) = nullptr;
    decltype(&cudaFree) free = nullptr;
    cudaError_t (*allocate_host)(void**, std::size_t, unsigned) = nullptr;
    decltype(&cudaFreeHost) free_host = nullptr;
    decltype(&cudaMemcpyAsync) copy = nullptr;
    decltype(&cudaMemsetAsync) set = nullptr;
    decltype(&cudaStreamBeginCapture) begin_capture = nullptr;
    decltype(&cudaStreamEndCapture) end_capture = nullptr;
    cudaError_t (*instantiate)(cudaGraphExec_t*, cudaGraph_t, unsigned long long) = nullptr;
    decltype(&cudaGraphDestroy) destroy_graph = nullptr;
    decltype(&cudaGraphExecDestroy) destroy_executable = nullptr;
    decltype(&cudaGraphLaunch) launch = nullptr;
    decltype(&cudaGetErrorName) error_name = nullptr;
    decltype(&cudaGetErrorString) error_string = nullptr;
    decltype(&cudaGetLastError) last_error = nullptr;
};

Driver::Library::Library() {
    std::vector<std::string> names = {"libcudart.so.13", "libcudart.so.12", "libcudart.so"};
    if (const char* named = std::getenv("TRTPRUNE_CUDART"); named != nullptr && *named != '\0') names = {named};
    std::string reason;
    for (const std::string& name : names) {
        handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle != nullptr) {
            path = name;
            break;
        }
        if (reason.empty()) reason = dlerror();
    }
    if (handle == nullptr) {
        throw BackendError("the CUDA runtime does not load: " + reason,
                           "install CUDA 12 or 13, or set TRTPRUNE_CUDART to its libcudart.so");
    }
    find(runtime_version, "cudaRuntimeGetVersion");
    find(device_count, "cudaGetDeviceCount");
    find(set_device, "cudaSetDevice");
    find(attribute, "cudaDeviceGetAttribute");
    find(create_stream, "cudaStreamCreateWithFlags");
    find(destroy_stream, "cudaStreamDestroy");
    find(synchronize, "cudaStreamSynchronize");
    find(memory_info, "cudaMemGetInfo");
    find(allocate, "cudaMalloc");
    find(free, "cudaFree");
    find(allocate_host, "cudaHostAlloc");
    find(free_host, "cudaFreeHost");
    find(copy, "cudaMemcpyAsync");
    find(set, "cudaMemsetAsync");
    find(begin_capture, "cudaStreamBeginCapture");
    find(end_capture, "cudaStreamEndCapture");
    find(instantiate, "cudaGraphInstantiate");
    find(destroy_graph, "cudaGraphDestroy");
    find(destroy_executable, "cudaGraphExecDestroy");
    find(launch, "cudaGraphLaunch");
    find(error_name, "cudaGetErrorName");
    find(error_string, "cudaGetErrorString");
    find(last_error, "cudaGetLastError");
    int version = 0;
    if (runtime_version(&version) != cudaSuccess || version < oldest_runtime) {
        // Before CUDA 12 a graph was instantiated by a function of other parameters.
        const std::string found = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
        dlclose(handle);
        throw BackendError(path + " is CUDA " + found + ", which is too old",
                           "install CUDA 12 or 13, or set TRTPRUNE_CUDART to its libcudart.so");
    }
}

namespace {

/// The device's name: the first 256 bytes of a struct whose later members differ between releases.
std::string name_of(void* handle, int id) {
    using Ask = cudaError_t (*)(void*, int);
    void* symbol = dlsym(handle, "cudaGetDeviceProperties_v2");
    if (symbol == nullptr) symbol = dlsym(handle, "cudaGetDeviceProperties");
    std::array<char, 8192> properties{};
    if (symbol == nullptr || reinterpret_cast<Ask>(symbol)(properties.data(), id) != cudaSuccess) return "GPU";
    properties[255] = '\0';
    return properties.data();
}

}  // namespace

Driver::Driver(int device_id) : cuda_(std::make_shared<Library>()), id_(device_id) {
    int count = 0;
    if (const cudaError_t status = cuda_->device_count(&count); status != cudaSuccess) {
        throw BackendError("there is no GPU that CUDA can use (" + text_of(status) + ")", cpu_hint);
    }
    if (device_id < 0 || device_id >= count) {
        throw BackendError("--provider-option device_id=" + std::to_string(device_id) + ": there are " +
                               std::to_string(count) + " GPUs",
                           count > 0 ? "0 to " + std::to_string(count - 1) : cpu_hint);
    }
    enter();
    check("asking the GPU", cuda_->attribute(&capability_.first, cudaDevAttrComputeCapabilityMajor, id_));
    check("asking the GPU", cuda_->attribute(&capability_.second, cudaDevAttrComputeCapabilityMinor, id_));
    name_ = name_of(cuda_->handle, id_);
    check("making a stream", cuda_->create_stream(&stream_, cudaStreamNonBlocking));
}

Driver::~Driver() {
    if (stream_ != nullptr) cuda_->destroy_stream(stream_);
}

std::string Driver::sm() const {
    return "sm" + std::to_string(capability_.first) + std::to_string(capability_.second);
}

void Driver::enter() {
    check("choosing the GPU", cuda_->set_device(id_));
}

std::pair<std::int64_t, std::int64_t> Driver::memory_info() {
    enter();
    std::size_t free_bytes = 0;
    std::size_t total = 0;
    check("asking for free memory", cuda_->memory_info(&free_bytes, &total));
    return {static_cast<std::int64_t>(free_bytes), static_cast<std::int64_t>(total)};
}

void* Driver::allocate(std::int64_t nbytes) {
    enter();
    void* address = nullptr;
    const cudaError_t status = cuda_->allocate(&address, static_cast<std::size_t>(nbytes));
    if (status == cudaErrorMemoryAllocation) {
        cuda_->last_error();  // otherwise the next call would report it again
        return nullptr;
    }
    check("allocating", status);
    return address;
}

void Driver::free(void* address) noexcept {
    cuda_->free(address);  // an earlier failure is reported by the next call, too; here nobody could catch it
}

std::shared_ptr<std::byte> Driver::allocate_host(std::int64_t nbytes) {
    enter();
    void* address = nullptr;
    check("allocating page-locked memory", cuda_->allocate_host(&address, static_cast<std::size_t>(nbytes), 0));
    return {static_cast<std::byte*>(address), [library = cuda_](std::byte* block) { library->free_host(block); }};
}

void Driver::to_device(void* target, const void* source, std::int64_t nbytes) {
    copy(target, source, nbytes, cudaMemcpyHostToDevice);
}

void Driver::to_host(void* target, const void* source, std::int64_t nbytes) {
    copy(target, source, nbytes, cudaMemcpyDeviceToHost);
}

void Driver::on_device(void* target, const void* source, std::int64_t nbytes) {
    copy(target, source, nbytes, cudaMemcpyDeviceToDevice);
}

void Driver::copy(void* target, const void* source, std::int64_t nbytes, cudaMemcpyKind kind) {
    if (nbytes == 0) return;
    enter();
    check("copying", cuda_->copy(target, source, static_cast<std::size_t>(nbytes), kind, stream_));
}

void Driver::clear(void* target, std::int64_t nbytes) {
    if (nbytes == 0) return;
    enter();
    check("clearing", cuda_->set(target, 0, static_cast<std::size_t>(nbytes), stream_));
}

void Driver::synchronize() {
    enter();
    check("running", cuda_->synchronize(stream_));
}

class RecordedGraph : public Graph {
  public:
    RecordedGraph(Driver& driver, std::shared_ptr<Driver::Library> cuda, cudaGraphExec_t graph)
        : driver_(driver), cuda_(std::move(cuda)), graph_(graph) {}
    ~RecordedGraph() override { cuda_->destroy_executable(graph_); }
    RecordedGraph(const RecordedGraph&) = delete;
    RecordedGraph& operator=(const RecordedGraph&) = delete;

    void launch() override {
        driver_.enter();
        driver_.check("launching a CUDA graph", cuda_->launch(graph_, driver_.stream_));
    }

  private:
    Driver& driver_;
    std::shared_ptr<Driver::Library> cuda_;
    cudaGraphExec_t graph_;
};

std::unique_ptr<Graph> Driver::record(const std::function<void()>& work) {
    enter();
    cudaGraph_t graph = nullptr;
    // Thread-local: other threads of the process may use CUDA at the same time.
    check("recording", cuda_->begin_capture(stream_, cudaStreamCaptureModeThreadLocal));
    try {
        work();
    } catch (...) {
        cuda_->end_capture(stream_, &graph);  // otherwise the stream would stay unusable
        if (graph != nullptr) cuda_->destroy_graph(graph);
        cuda_->last_error();
        throw;
    }
    check("recording", cuda_->end_capture(stream_, &graph));
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cuda_->instantiate(&executable, graph, 0);
    cuda_->destroy_graph(graph);
    check("making a CUDA graph", status);
    return std::make_unique<RecordedGraph>(*this, cuda_, executable);
}

std::string Driver::text_of(cudaError_t status) const {
    return std::string(cuda_->error_name(status)) + ": " + cuda_->error_string(status);
}

void Driver::check(const char* what, cudaError_t status) {
    if (status == cudaSuccess) return;
    cuda_->last_error();
    throw BackendError(std::string("CUDA, ") + what + ": " + text_of(status), "nvidia-smi shows the state of the GPU");
}

}  // namespace trtprune::backend::tensorrt
