#include "backend/tensorrt/session.hpp"

#include <algorithm>
#include <trtprune/error.hpp>

#include "backend/tensorrt/shapes.hpp"

namespace trtprune::backend::tensorrt {

namespace {

constexpr const char* again = "build it again";

Binding binding_of(const Tensor& array) {
    return {array.address(), array.shape()};
}

}  // namespace

TrtCache::TrtCache(Tensor slab, std::map<std::string, Tensor, std::less<>> views, std::int64_t batch,
                   std::int64_t capacity)
    : slab_(std::move(slab)), views_(std::move(views)), batch_(batch), capacity_(capacity) {
    for (const auto& [name, view] : views_) nbytes_ += view.nbytes();
}

TrtSession::TrtSession(engine_dir::ComponentInfo component, std::shared_ptr<Engine> engine)
    : component_(std::move(component)),
      engine_(std::move(engine)),
      capacity_(cache_capacity(component_)),
      max_batch_(tensorrt::max_batch(component_)),
      pairs_(cache_pairs(component_.inputs, component_.outputs)),
      inputs_(without_cache(component_.inputs)),
      outputs_(without_cache(component_.outputs)) {
    check_tensors();
    // Now, so that an engine that cannot run fails when it is loaded.
    for (int profile = 0; profile < engine_->profiles(); ++profile) contexts_.push_back(engine_->context(profile));
}

void TrtSession::check_tensors() const {
    const std::string& file = *component_.engine;
    std::set<std::string, std::less<>> input_names;
    std::set<std::string, std::less<>> output_names;
    for (const auto& spec : component_.inputs) input_names.insert(spec.name);
    for (const auto& spec : component_.outputs) output_names.insert(spec.name);
    // An input that nothing reads may be missing from the engine.
    const bool known = std::includes(input_names.begin(), input_names.end(), engine_->inputs().begin(),
                                     engine_->inputs().end(), std::less<>());
    if (engine_->outputs() != output_names || !known) {
        throw EngineDirError(file + ": the engine's tensors are not those of config.json", again);
    }
    for (const CachePair& pair : pairs_) {
        if (engine_->inputs().count(pair.past) == 0) {
            throw EngineDirError(file + ": the engine does not read its cache", again);
        }
    }
    if (engine_->profiles() != std::max(1, static_cast<int>(component_.profiles.size()))) {
        throw EngineDirError(file + ": has " + std::to_string(engine_->profiles()) + " profiles", again);
    }
}

void TrtSession::bind_cache(const Cache& cache, Bindings& inputs, Bindings& outputs) const {
    const auto& own = dynamic_cast<const TrtCache&>(cache);
    for (const CachePair& pair : pairs_) {
        inputs[pair.past] = binding_of(own.view(pair.past));
        outputs[pair.present] = binding_of(own.view(pair.past));
    }
}

Tensors TrtSession::run(const Tensors& inputs, Cache* cache) {
    DeviceMemory& memory = engine_->memory();
    Shapes values;
    for (const std::string& name : engine_->on_host()) {
        const auto array = inputs.find(name);
        if (array == inputs.end()) continue;
        if (array->second.place() != Place::host) {
            throw BackendError("an input whose values decide shapes must be on the host");
        }
        const auto* numbers = array->second.data<std::int64_t>();
        values[name] = Shape(numbers, numbers + array->second.size());
    }
    const PlannedCall call = plan_call(component_, inputs_, outputs_, inputs, values);
    Tensors held;  // bound arrays must live until the run is on the stream
    for (const auto& [name, array] : inputs) {
        if (engine_->inputs().count(name) == 0) continue;
        held[name] = values.count(name) != 0 ? array : memory.aligned(memory.upload(array));
    }
    Tensors results;
    for (const auto& spec : outputs_) {
        results[spec.name] = memory.empty(dtype_from_name(spec.dtype), call.outputs.at(spec.name));
    }
    Bindings bound;
    Bindings written;
    for (const auto& [name, array] : held) bound[name] = binding_of(array);
    for (const auto& [name, array] : results) written[name] = binding_of(array);
    if (cache != nullptr) bind_cache(*cache, bound, written);
    Context& context = *contexts_.at(static_cast<std::size_t>(call.profile));
    context.bind(bound, written);
    context.enqueue();
    return results;
}

void TrtSession::check_capacity(std::int64_t capacity) const {
    if (capacity > capacity_) {
        throw BackendError(
            "a KV cache of " + std::to_string(capacity) + " tokens; the engine has " + std::to_string(capacity_),
            "build with a larger --max-seq-len");
    }
}

std::unique_ptr<Cache> TrtSession::new_cache(std::int64_t batch, std::int64_t capacity, std::unique_ptr<Cache> reuse) {
    check_capacity(capacity);
    std::map<std::string, Shape> shapes;
    std::map<std::string, std::int64_t> places;
    std::int64_t size = 0;
    for (const CachePair& pair : pairs_) {
        const std::optional<Shape> shape = resolve_shape(pair.spec, {{"batch", batch}, {"capacity", capacity_}});
        if (!shape) throw BackendError(pair.past + ": its shape has unknown dimensions");
        shapes[pair.past] = *shape;
        places[pair.past] = size;
        size += round_up(volume(*shape) * item_size(dtype_from_name(pair.spec.dtype)), alignment);
    }
    DeviceMemory& memory = engine_->memory();
    Tensor slab;
    if (reuse != nullptr) {
        const Tensor& old = dynamic_cast<const TrtCache&>(*reuse).slab();
        // A much larger block would stay allocated for ever after one large batch.
        if (size <= old.nbytes() && old.nbytes() <= std::max(4 * size, keep_bytes)) slab = old;
        reuse.reset();  // first, so that both need not fit at once
    }
    if (!slab) slab = memory.empty(DType::uint8, {block_size(size)});
    std::map<std::string, Tensor, std::less<>> views;
    for (const CachePair& pair : pairs_) {
        views[pair.past] =
            DeviceMemory::view(slab, dtype_from_name(pair.spec.dtype), shapes.at(pair.past), places.at(pair.past));
    }
    // Masked slots are multiplied by a zero weight, and 0 × NaN would be NaN.
    memory.driver().clear(slab.address(), size);
    return std::make_unique<TrtCache>(std::move(slab), std::move(views), batch, capacity_);
}

std::unique_ptr<Cache> TrtSession::grow_cache(std::unique_ptr<Cache> cache, std::int64_t capacity) {
    check_capacity(capacity);  // caches of engines have their full capacity from the beginning
    return cache;
}

}  // namespace trtprune::backend::tensorrt
