#include "backend/onnxruntime/session.hpp"

#include <trtprune/error.hpp>
#include <utility>

#include "backend/onnxruntime/cache.hpp"

namespace trtprune::backend::onnxruntime {

GraphSession::GraphSession(std::shared_ptr<const Library> library, SessionHandle session,
                           const engine_dir::ComponentInfo& component)
    : library_(std::move(library)),
      session_(std::move(session)),
      pairs_(cache_pairs(component.inputs, component.outputs)),
      inputs_(without_cache(component.inputs)),
      outputs_(without_cache(component.outputs)) {
    if (!same_tensors(component.inputs, tensors(true)) || !same_tensors(component.outputs, tensors(false))) {
        throw EngineDirError("the graph's inputs or outputs are not those of config.json", "build it again");
    }
}

GraphTensors GraphSession::tensors(bool inputs) const {
    const OrtApi& api = library_->api();
    OrtAllocator* allocator = nullptr;
    library_->check(api.GetAllocatorWithDefaultOptions(&allocator));
    std::size_t count = 0;
    library_->check(inputs ? api.SessionGetInputCount(session_.get(), &count)
                           : api.SessionGetOutputCount(session_.get(), &count));
    GraphTensors found;
    for (std::size_t i = 0; i < count; ++i) {
        char* text = nullptr;
        library_->check(inputs ? api.SessionGetInputName(session_.get(), i, allocator, &text)
                               : api.SessionGetOutputName(session_.get(), i, allocator, &text));
        const std::string name = text;
        allocator->Free(allocator, text);
        OrtTypeInfo* type = nullptr;
        library_->check(inputs ? api.SessionGetInputTypeInfo(session_.get(), i, &type)
                               : api.SessionGetOutputTypeInfo(session_.get(), i, &type));
        const std::unique_ptr<OrtTypeInfo, Release<OrtTypeInfo>> held(type, {api.ReleaseTypeInfo});
        const OrtTensorTypeAndShapeInfo* info = nullptr;  // belongs to the type
        library_->check(api.CastTypeInfoToTensorInfo(type, &info));
        std::size_t rank = 0;
        if (info != nullptr) library_->check(api.GetDimensionsCount(info, &rank));
        Shape shape(rank);
        if (rank != 0) library_->check(api.GetDimensions(info, shape.data(), rank));
        found[name] = std::move(shape);
    }
    return found;
}

Tensors GraphSession::run(const Tensors& inputs, Cache* cache) {
    const Dims dims = bind_dims(inputs_, inputs);
    const OrtApi& api = library_->api();
    const auto* buffers = dynamic_cast<OrtCache*>(cache);
    if (buffers == nullptr && !pairs_.empty()) throw BackendError("a decoder was run without its cache");
    std::vector<Value> views;
    std::vector<const char*> names, result_names;
    std::vector<const OrtValue*> values;
    for (const auto& [name, array] : inputs) {
        views.emplace_back(library_->view(array), Release<OrtValue>{api.ReleaseValue});
        names.push_back(name.c_str());
        values.push_back(views.back().get());
    }
    std::vector<OrtValue*> results;
    for (const auto& spec : outputs_) {
        result_names.push_back(spec.name.c_str());
        results.push_back(nullptr);
    }
    // Each buffer is bound as input and as output, so that a run writes its rows in place and copies nothing.
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
        OrtValue* value = buffers->values()[i].get();
        names.push_back(pairs_[i].past.c_str());
        values.push_back(value);
        result_names.push_back(pairs_[i].present.c_str());
        results.push_back(value);
    }
    library_->check(api.Run(session_.get(), nullptr, names.data(), values.data(), values.size(), result_names.data(),
                            results.size(), results.data()));
    // Owned before anything can fail.
    std::vector<Value> owned;
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
        owned.emplace_back(results[i], Release<OrtValue>{api.ReleaseValue});
    }
    Tensors outputs;
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
        const Tensor array = taken(owned[i].release());
        const auto shape = resolve_shape(outputs_[i], dims);
        if (dtype_name(array.dtype()) != outputs_[i].dtype || (shape && *shape != array.shape())) {
            throw BackendError("output " + outputs_[i].name + " is " + std::string(dtype_name(array.dtype())) + " " +
                                   shown(array.shape()) + ", not what config.json says",
                               "build the directory again");
        }
        outputs[outputs_[i].name] = array;
    }
    return outputs;
}

// The array of a value, which it owns.
Tensor GraphSession::taken(OrtValue* value) const {
    const OrtApi& api = library_->api();
    const std::shared_ptr<void> owner(
        value, [library = library_](void* held) { library->api().ReleaseValue(static_cast<OrtValue*>(held)); });
    OrtTensorTypeAndShapeInfo* info = nullptr;
    library_->check(api.GetTensorTypeAndShape(value, &info));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, Release<OrtTensorTypeAndShapeInfo>> held(
        info, {api.ReleaseTensorTypeAndShapeInfo});
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    std::size_t rank = 0;
    library_->check(api.GetTensorElementType(info, &type));
    library_->check(api.GetDimensionsCount(info, &rank));
    Shape shape(rank);
    if (rank != 0) library_->check(api.GetDimensions(info, shape.data(), rank));
    void* address = nullptr;
    library_->check(api.GetTensorMutableData(value, &address));
    return Tensor(dtype_of(type), std::move(shape), owner, address, Place::host);
}

std::unique_ptr<Cache> GraphSession::new_cache(std::int64_t batch, std::int64_t capacity,
                                               std::unique_ptr<Cache> reuse) {
    return std::make_unique<OrtCache>(library_, pairs_, batch, capacity, dynamic_cast<const OrtCache*>(reuse.get()));
}

std::unique_ptr<Cache> GraphSession::grow_cache(std::unique_ptr<Cache> cache, std::int64_t capacity) {
    auto grown = std::make_unique<OrtCache>(library_, pairs_, cache->batch(), capacity, nullptr);
    grown->begin_with(dynamic_cast<const OrtCache&>(*cache));
    return grown;
}

}  // namespace trtprune::backend::onnxruntime
