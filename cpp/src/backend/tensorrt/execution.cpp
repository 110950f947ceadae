#include "backend/tensorrt/execution.hpp"

#include <trtprune/error.hpp>

namespace trtprune::backend::tensorrt {

namespace {

nvinfer1::Dims dims_of(const Shape& shape) {
    nvinfer1::Dims dims{};
    if (shape.size() > static_cast<std::size_t>(nvinfer1::Dims::MAX_DIMS)) {
        throw BackendError("a tensor of " + std::to_string(shape.size()) + " axes");
    }
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
    return dims;
}

Shape shape_of(const nvinfer1::Dims& dims) {
    return dims.nbDims < 0 ? Shape{-1} : Shape(dims.d, dims.d + dims.nbDims);
}

}  // namespace

void Workspace::reserve(std::int64_t nbytes) {
    if (nbytes <= nbytes_) return;
    nbytes_ = nbytes;
    array_ = Tensor();
    ++generation_;
}

void* Workspace::address() {
    if (!array_) array_ = memory_.empty(DType::uint8, {nbytes_});
    return array_.address();
}

Engine::Engine(std::unique_ptr<nvinfer1::ICudaEngine> engine, std::string name, DeviceMemory& memory,
               Workspace& workspace)
    : engine_(std::move(engine)),
      name_(std::move(name)),
      memory_(memory),
      workspace_(workspace),
      profiles_(engine_->getNbOptimizationProfiles()) {
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
        const char* tensor = engine_->getIOTensorName(i);
        const bool input = engine_->getTensorIOMode(tensor) == nvinfer1::TensorIOMode::kINPUT;
        (input ? inputs_ : outputs_).emplace(tensor);
        if (input && engine_->getTensorLocation(tensor) == nvinfer1::TensorLocation::kHOST) on_host_.emplace(tensor);
    }
    for (int profile = 0; profile < profiles_; ++profile) {
        workspace_.reserve(engine_->getDeviceMemorySizeForProfileV2(profile));
    }
}

std::unique_ptr<Context> Engine::context(int profile) {
    Driver& driver = memory_.driver();
    driver.enter();
    const MessageRecord record;
    std::unique_ptr<nvinfer1::IExecutionContext> context(
        engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (context == nullptr || (profile != 0 && !context->setOptimizationProfileAsync(profile, driver.stream()))) {
        throw BackendError(name_ + ": no execution context: " + record.why());
    }
    return std::make_unique<Context>(shared_from_this(), std::move(context));
}

void Context::bind(const Bindings& inputs, const Bindings& outputs) {
    const MessageRecord record;
    for (const auto& [name, binding] : inputs) {
        if (engine_->inputs().count(name) == 0) continue;
        if (!context_->setInputShape(name.c_str(), dims_of(binding.shape)) ||
            !context_->setTensorAddress(name.c_str(), binding.address)) {
            fail("input " + name + " " + shown(binding.shape), record.why());
        }
    }
    const char* missing = nullptr;
    const std::int32_t count = context_->inferShapes(1, &missing);
    if (count < 0) fail("shapes", record.why());
    if (count > 0) {
        fail(std::string("input ") + (missing != nullptr ? missing : "?"), record.why("it has no shape or value"));
    }
    for (const auto& [name, binding] : outputs) {
        const Shape shape = shape_of(context_->getTensorShape(name.c_str()));
        if (shape != binding.shape) {
            fail("output " + name, "has shape " + shown(shape) + ", expected " + shown(binding.shape));
        }
        if (!context_->setTensorAddress(name.c_str(), binding.address)) fail("output " + name, record.why());
    }
}

void Context::enqueue() {
    Driver& driver = engine_->memory().driver();
    Workspace& workspace = engine_->workspace();
    driver.enter();
    const MessageRecord record;
    if (generation_ != workspace.generation()) {
        context_->setDeviceMemoryV2(workspace.address(), workspace.nbytes());
        generation_ = workspace.generation();
    }
    if (!context_->enqueueV3(driver.stream()) || record.errors()) fail("run", record.why());
}

void Context::fail(const std::string& what, const std::string& why) const {
    throw BackendError(engine_->name() + ": " + what + ": TensorRT: " + why);
}

}  // namespace trtprune::backend::tensorrt
