#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include "device.hpp"
#include "unused.hpp"

// A TensorRT whose engines are ONNX files, run by ONNX Runtime on the memory that is bound; the engine files are those
// of tests/kit/fake_tensorrt.py.
//
// Of the interface there is what the library uses, and it is stricter than TensorRT: addresses must be aligned and
// alive when the work is done, a cache must be read and written in one place, shapes must lie in the profile that was
// chosen, and the activations' memory is overwritten by every run.

namespace standin {

namespace {

using Json = nlohmann::json;
using Sizes = std::vector<std::int64_t>;

constexpr std::string_view magic = "FAKE";
constexpr std::size_t tail = 100;
const std::set<std::string, std::less<>> counts = {"keep", "recycled", "merged"};

bool is_past(const std::string& name) {
    return name.rfind("past_key_values.", 0) == 0;
}

std::size_t item_size(ONNXTensorElementDataType type) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
            return 4;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
            return 2;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
            return 8;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
            return 1;
        default:
            die("a tensor of another type");
    }
}

std::size_t volume(const Sizes& shape) {
    std::size_t size = 1;
    for (const std::int64_t n : shape) size *= static_cast<std::size_t>(n);
    return size;
}

Ort::Env& environment() {
    static Ort::Env* env = [] {
        void* library = dlopen(setting("TRTPRUNE_ONNXRUNTIME", "libonnxruntime.so.1").c_str(), RTLD_NOW);
        if (library == nullptr) die(dlerror());
        using Get = const OrtApiBase* (*)();
        Ort::InitApi(reinterpret_cast<Get>(dlsym(library, "OrtGetApiBase"))()->GetApi(ORT_API_VERSION));
        return new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "standin");
    }();
    return *env;
}

/// A graph's tensor; names in place of sizes that are not fixed.
struct Value {
    ONNXTensorElementDataType type;
    Sizes shape;
    std::vector<std::string> names;
    bool input;
};

class Runtime;

class Engine : public ICudaEngine, public OtherCudaEngine {
  public:
    Engine(ILogger& logger, Json data);
    ~Engine() override { Device::instance().free(weights_); }

    ICudaEngine* getPImpl() noexcept override { return this; }
    std::int32_t getNbOptimizationProfiles() const noexcept override {
        return static_cast<std::int32_t>(data["profiles"].size());
    }
    TensorLocation getTensorLocation(char const* name) const noexcept override {
        return counts.count(std::string_view(name)) != 0 ? TensorLocation::kHOST : TensorLocation::kDEVICE;
    }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        return values.at(name).input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    std::int32_t getNbIOTensors() const noexcept override { return static_cast<std::int32_t>(names.size()); }
    char const* getIOTensorName(std::int32_t i) const noexcept override {
        return names.at(static_cast<std::size_t>(i)).c_str();
    }
    std::int64_t getDeviceMemorySizeForProfileV2(std::int32_t profile) const noexcept override {
        return data["workspace"][static_cast<std::size_t>(profile)];
    }
    bool setWeightStreamingBudgetV2(std::int64_t) noexcept override { return true; }
    std::int64_t getWeightStreamingAutomaticBudget() const noexcept override { return 12345; }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override;

    bool fail(const std::string& message) {
        logger_.log(ILogger::Severity::kERROR,
                    ("IExecutionContext: Error Code 3: API Usage Error (" + message + ")").c_str());
        return false;
    }
    /// The limits of an input in a profile; NULL where its shape is fixed.
    const Json* limits(std::size_t profile, const std::string& name) const {
        const Json& ranges = data["profiles"][profile];
        const auto range = ranges.find(name);
        return range == ranges.end() ? nullptr : &*range;
    }

    Json data;
    std::unique_ptr<Ort::Session> session;
    std::map<std::string, Value> values;
    std::vector<std::string> names;

  private:
    void read(bool input);

    ILogger& logger_;
    void* weights_;
};

class Context : public IExecutionContext, public OtherExecutionContext {
  public:
    explicit Context(Engine& engine) : engine_(engine) { IExecutionContext::mImpl = this; }

    IExecutionContext* getPImpl() noexcept override { return this; }
    bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t) noexcept override {
        profile_ = static_cast<std::size_t>(profile);
        return profile < engine_.ICudaEngine::getNbOptimizationProfiles();
    }
    bool setInputShape(char const* tensor, Dims const& dims) noexcept override;
    Dims getTensorShape(char const* tensor) const noexcept override;
    bool setTensorAddress(char const* tensor, void* address) noexcept override;
    std::int32_t inferShapes(std::int32_t most, char const** missing) noexcept override;
    bool enqueueV3(cudaStream_t stream) noexcept override;
    void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override {
        if (size < engine_.getDeviceMemorySizeForProfileV2(static_cast<std::int32_t>(profile_))) die("little memory");
        workspace_ = {memory, static_cast<std::size_t>(size)};
    }

  private:
    Sizes shape_of(const std::string& name) const;
    void compute(const std::map<std::string, Sizes>& shapes, const std::map<std::string, void*>& addresses,
                 const std::map<std::string, std::int64_t>& numbers, std::pair<void*, std::size_t> workspace);

    Engine& engine_;
    std::size_t profile_ = 0;
    std::map<std::string, Sizes> shapes_;
    std::map<std::string, void*> addresses_;
    std::map<std::string, std::int64_t> numbers_;
    std::pair<void*, std::size_t> workspace_{};
    bool ran_ = false;
};

class Runtime : public IRuntime, public OtherRuntime {
  public:
    explicit Runtime(ILogger& logger) : logger_(logger) { IRuntime::mImpl = this; }

    IRuntime* getPImpl() noexcept override { return this; }
    using OtherRuntime::deserializeCudaEngine;
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        const std::string_view text(static_cast<const char*>(blob), size);
        const bool whole = size > magic.size() + tail && text.substr(0, magic.size()) == magic &&
                           text.substr(size - tail).find_first_not_of('\0') == std::string_view::npos;
        if (!whole) {
            logger_.log(ILogger::Severity::kERROR,
                        "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag does not match)");
            return nullptr;
        }
        return new Engine(logger_, Json::parse(text.substr(magic.size(), size - magic.size() - tail)));
    }
    void setEngineHostCodeAllowed(bool allowed) noexcept override { allowed_ = allowed; }
    bool getEngineHostCodeAllowed() const noexcept override { return allowed_; }

  private:
    ILogger& logger_;
    bool allowed_ = false;
};

Engine::Engine(ILogger& logger, Json content) : data(std::move(content)), logger_(logger) {
    ICudaEngine::mImpl = this;
    const std::string path = data["onnx"];
    std::ifstream file(path, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    Ort::Env& env = environment();
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    options.AddConfigEntry("session.model_external_initializers_file_folder_path",
                           data["root"].get<std::string>().c_str());
    session = std::make_unique<Ort::Session>(env, bytes.data(), bytes.size(), options);
    read(true);
    read(false);
    weights_ = Device::instance().allocate(bytes.size());
    if (weights_ == nullptr) die("no memory for an engine");
}

void Engine::read(bool input) {
    Ort::AllocatorWithDefaultOptions allocator;
    const std::size_t count = input ? session->GetInputCount() : session->GetOutputCount();
    for (std::size_t i = 0; i < count; ++i) {
        const std::string name =
            (input ? session->GetInputNameAllocated(i, allocator) : session->GetOutputNameAllocated(i, allocator))
                .get();
        const Ort::TypeInfo type = input ? session->GetInputTypeInfo(i) : session->GetOutputTypeInfo(i);
        const auto info = type.GetTensorTypeAndShapeInfo();
        Value value{info.GetElementType(), info.GetShape(), {}, input};
        std::vector<const char*> symbols(value.shape.size());
        info.GetSymbolicDimensions(symbols.data(), symbols.size());
        value.names.assign(symbols.begin(), symbols.end());
        values.emplace(name, std::move(value));
        names.push_back(name);
    }
}

IExecutionContext* Engine::createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept {
    if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) die("memory that is not the user's");
    return new Context(*this);
}

bool Context::setInputShape(char const* tensor, Dims const& dims) noexcept {
    const std::string name = tensor;
    const Value& value = engine_.values.at(name);
    const Sizes shape(dims.d, dims.d + dims.nbDims);
    if (shape.size() != value.shape.size()) return engine_.fail("rank of " + name);
    const Json* limits = engine_.limits(profile_, name);
    if (counts.count(name) == 0 && limits != nullptr) {
        const Sizes low = (*limits)[0];
        const Sizes high = (*limits)[2];
        for (std::size_t i = 0; i < shape.size(); ++i) {
            if (shape[i] < low[i] || shape[i] > high[i]) return engine_.fail(name + " is outside of the profile");
        }
    }
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (value.shape[i] >= 0 && value.shape[i] != shape[i]) return engine_.fail("shape of " + name);
    }
    if (is_past(name) && shape[2] != engine_.data["capacity"].get<std::int64_t>()) {
        return engine_.fail(name + ": the capacity is static");
    }
    shapes_[name] = shape;
    return true;
}

bool Context::setTensorAddress(char const* tensor, void* address) noexcept {
    const std::string name = tensor;
    if (address == nullptr) die(name + ": null");
    if (counts.count(name) != 0) {
        std::memcpy(&numbers_[name], address, sizeof(std::int64_t));
        const Json* limits = engine_.limits(profile_, name);
        const std::int64_t number = numbers_[name];
        if (limits != nullptr &&
            (number < (*limits)[0][0].get<std::int64_t>() || number > (*limits)[2][0].get<std::int64_t>())) {
            return engine_.fail(name + " " + std::to_string(number) + " is outside of the profile");
        }
    } else if (reinterpret_cast<std::uintptr_t>(address) % alignment != 0) {
        return engine_.fail(name + ": the address is not aligned");
    }
    addresses_[name] = address;
    return true;
}

std::int32_t Context::inferShapes(std::int32_t most, char const** missing) noexcept {
    std::int32_t count = 0;
    for (const std::string& name : engine_.names) {
        if (!engine_.values.at(name).input) continue;
        const bool known = shapes_.count(name) != 0 && (counts.count(name) == 0 || addresses_.count(name) != 0);
        if (known) continue;
        if (count < most) missing[count] = name.c_str();
        ++count;
    }
    return count;
}

Sizes Context::shape_of(const std::string& name) const {
    if (const auto known = shapes_.find(name); known != shapes_.end()) return known->second;
    std::map<std::string, std::int64_t> sizes(numbers_.begin(), numbers_.end());
    for (const auto& [input, shape] : shapes_) {
        const Value& value = engine_.values.at(input);
        for (std::size_t i = 0; i < shape.size(); ++i) {
            if (!value.names[i].empty()) sizes[value.names[i]] = shape[i];
        }
    }
    const Value& value = engine_.values.at(name);
    Sizes shape = value.shape;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] < 0) shape[i] = sizes.count(value.names[i]) != 0 ? sizes.at(value.names[i]) : -1;
    }
    return shape;
}

Dims Context::getTensorShape(char const* tensor) const noexcept {
    const Sizes shape = shape_of(tensor);
    Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
    return dims;
}

bool Context::enqueueV3(cudaStream_t) noexcept {
    for (const std::string& name : engine_.names) {
        if (addresses_.count(name) == 0) return engine_.fail("no address for " + name);
    }
    if (workspace_.second == 0) die("no memory for activations");
    std::map<std::string, Sizes> shapes;
    for (const std::string& name : engine_.names) {
        shapes[name] = shape_of(name);
        if (is_past(name) && addresses_.at("present." + name.substr(16)) != addresses_.at(name)) {
            die("a cache that is not updated in place");
        }
    }
    Device::instance().push([this, shapes, addresses = addresses_, numbers = numbers_,
                             workspace = workspace_] { compute(shapes, addresses, numbers, workspace); },
                            ran_);
    ran_ = true;
    return true;
}

void Context::compute(const std::map<std::string, Sizes>& shapes, const std::map<std::string, void*>& addresses,
                      const std::map<std::string, std::int64_t>& numbers, std::pair<void*, std::size_t> workspace) {
    Device& device = Device::instance();
    std::memset(device.view(workspace.first, workspace.second), 0xAB, workspace.second);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<const char*> read;
    std::vector<const char*> written;
    std::vector<Ort::Value> inputs;
    std::vector<std::vector<std::byte>> copies;
    for (const std::string& name : engine_.names) {
        const Value& value = engine_.values.at(name);
        if (!value.input) {
            written.push_back(name.c_str());
            continue;
        }
        const Sizes& shape = shapes.at(name);
        const std::size_t size = volume(shape) * item_size(value.type);
        const void* source = counts.count(name) != 0 ? static_cast<const void*>(&numbers.at(name))
                                                     : device.view(addresses.at(name), size);
        const auto* first = static_cast<const std::byte*>(source);
        copies.emplace_back(first, first + size);
        inputs.push_back(
            Ort::Value::CreateTensor(memory, copies.back().data(), size, shape.data(), shape.size(), value.type));
        read.push_back(name.c_str());
    }
    std::vector<Ort::Value> outputs = engine_.session->Run(Ort::RunOptions{nullptr}, read.data(), inputs.data(),
                                                           inputs.size(), written.data(), written.size());
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        const Value& value = engine_.values.at(written[i]);
        const Sizes& shape = shapes.at(written[i]);
        if (outputs[i].GetTensorTypeAndShapeInfo().GetShape() != shape) die(std::string("shape of ") + written[i]);
        const std::size_t size = volume(shape) * item_size(value.type);
        std::memcpy(device.view(addresses.at(written[i]), size), outputs[i].GetTensorRawData(), size);
    }
}

std::int32_t version_part(std::size_t place) {
    std::string text = setting("STANDIN_VERSION", "10.15.1.29");
    for (; place > 0; --place) text = text.substr(text.find('.') + 1);
    return std::stoi(text);
}

}  // namespace

}  // namespace standin

#define STANDIN_API extern "C" __attribute__((visibility("default")))

STANDIN_API void* createInferRuntime_INTERNAL(void* logger, std::int32_t) noexcept {
    nvinfer1::IRuntime* runtime = new standin::Runtime(*static_cast<nvinfer1::ILogger*>(logger));
    return runtime;
}
STANDIN_API std::int32_t getInferLibMajorVersion() noexcept {
    return standin::version_part(0);
}
STANDIN_API std::int32_t getInferLibMinorVersion() noexcept {
    return standin::version_part(1);
}
STANDIN_API std::int32_t getInferLibPatchVersion() noexcept {
    return standin::version_part(2);
}
STANDIN_API std::int32_t getInferLibBuildVersion() noexcept {
    return standin::version_part(3);
}
STANDIN_API nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
    return nullptr;
}
