#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "device.hpp"

// The functions of the CUDA runtime that the library loads.

using standin::Device;
using standin::die;

namespace {

using Work = std::vector<std::function<void()>>;

cudaStream_t the_stream() {
    static int place = 0;
    return reinterpret_cast<cudaStream_t>(&place);
}

void check_stream(cudaStream_t stream) {
    if (stream != the_stream()) die("another stream");
}

}  // namespace

#define STANDIN_API extern "C" __attribute__((visibility("default"))) cudaError_t CUDARTAPI

STANDIN_API cudaRuntimeGetVersion(int* version) {
    *version = static_cast<int>(standin::setting("STANDIN_CUDA", 13000));
    return cudaSuccess;
}

STANDIN_API cudaGetDeviceCount(int* count) {
    *count = static_cast<int>(standin::setting("STANDIN_DEVICES", 1));
    return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}

STANDIN_API cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

STANDIN_API cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const std::string capability = standin::setting("STANDIN_CAPABILITY", "9.0");
    const std::size_t dot = capability.find('.');
    *value = std::stoi(attribute == cudaDevAttrComputeCapabilityMajor ? capability.substr(0, dot)
                                                                      : capability.substr(dot + 1));
    return cudaSuccess;
}

STANDIN_API cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    std::strcpy(reinterpret_cast<char*>(properties), "Stand-in");
    return cudaSuccess;
}

STANDIN_API cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = the_stream();
    return cudaSuccess;
}

STANDIN_API cudaStreamDestroy(cudaStream_t stream) {
    check_stream(stream);
    return cudaSuccess;
}

STANDIN_API cudaStreamSynchronize(cudaStream_t stream) {
    check_stream(stream);
    Device::instance().synchronize();
    return cudaSuccess;
}

STANDIN_API cudaMemGetInfo(std::size_t* free, std::size_t* total) {
    *total = static_cast<std::size_t>(Device::instance().total());
    *free = *total - static_cast<std::size_t>(Device::instance().used());
    return cudaSuccess;
}

STANDIN_API cudaMalloc(void** address, std::size_t size) {
    *address = Device::instance().allocate(size);
    return *address != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

STANDIN_API cudaFree(void* address) {
    Device::instance().free(address);
    return cudaSuccess;
}

STANDIN_API cudaHostAlloc(void** address, std::size_t size, unsigned) {
    *address = Device::instance().allocate_host(size);
    return cudaSuccess;
}

STANDIN_API cudaFreeHost(void* address) {
    Device::instance().free_host(address);
    return cudaSuccess;
}

STANDIN_API cudaMemcpyAsync(void* target, const void* source, std::size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    check_stream(stream);
    Device& device = Device::instance();
    if (kind == cudaMemcpyHostToDevice) {
        device.view(target, size);
        if (device.pinned(source)) {
            device.push([=] { std::memcpy(Device::instance().view(target, size), source, size); });
            return cudaSuccess;
        }
        if (device.recording()) die("a recorded copy would read memory that may be gone");
        const auto* first = static_cast<const std::byte*>(source);
        const std::vector<std::byte> copy(first, first + size);
        device.push([=] { std::memcpy(Device::instance().view(target, size), copy.data(), size); });
    } else if (kind == cudaMemcpyDeviceToHost) {
        device.view(source, size);
        device.push([=] { std::memcpy(target, Device::instance().view(source, size), size); });
    } else if (kind == cudaMemcpyDeviceToDevice) {
        device.view(source, size);
        device.view(target, size);
        device.push(
            [=] { std::memmove(Device::instance().view(target, size), Device::instance().view(source, size), size); });
    } else {
        die("a copy of another kind");
    }
    return cudaSuccess;
}

STANDIN_API cudaMemsetAsync(void* target, int value, std::size_t size, cudaStream_t stream) {
    check_stream(stream);
    Device::instance().view(target, size);
    Device::instance().push([=] { std::memset(Device::instance().view(target, size), value, size); });
    return cudaSuccess;
}

STANDIN_API cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    check_stream(stream);
    if (mode != cudaStreamCaptureModeThreadLocal) die("a recording that other threads would disturb");
    Device::instance().begin_capture();
    return cudaSuccess;
}

STANDIN_API cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    check_stream(stream);
    *graph = reinterpret_cast<cudaGraph_t>(Device::instance().end_capture());
    return cudaSuccess;
}

STANDIN_API cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    if (standin::setting("STANDIN_NO_GRAPHS", std::int64_t{0}) != 0) return cudaErrorNotSupported;
    *executable = reinterpret_cast<cudaGraphExec_t>(new Work(*reinterpret_cast<Work*>(graph)));
    return cudaSuccess;
}

STANDIN_API cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<Work*>(graph);
    return cudaSuccess;
}

STANDIN_API cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete reinterpret_cast<Work*>(executable);
    return cudaSuccess;
}

STANDIN_API cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    check_stream(stream);
    Device::instance().launch(*reinterpret_cast<Work*>(executable));
    return cudaSuccess;
}

STANDIN_API cudaGetLastError() {
    return cudaSuccess;
}

extern "C" __attribute__((visibility("default"))) const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorNoDevice ? "cudaErrorNoDevice" : "cudaErrorNotSupported";
}

extern "C" __attribute__((visibility("default"))) const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "operation not supported";
}
