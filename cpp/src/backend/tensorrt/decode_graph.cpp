#include "backend/tensorrt/decode_graph.hpp"

#include <algorithm>
#include <trtprune/error.hpp>

#include "backend/tensor_names.hpp"
#include "backend/tensorrt/shapes.hpp"

namespace trtprune::backend::tensorrt {

namespace {

using engine_dir::TensorSpec;

// Places in the block.
constexpr std::int64_t ids_field = 0;
constexpr std::int64_t write_field = 1;
constexpr std::int64_t position_field = 2;

const TensorSpec& tensor(const std::vector<TensorSpec>& specs, const char* name) {
    for (const TensorSpec& spec : specs) {
        if (spec.name == name) return spec;
    }
    throw BackendError(std::string("the decode step needs ") + name, "build it again");
}

std::int64_t number(const TensorSpec& spec, std::size_t axis) {
    const auto* size = axis < spec.shape.size() ? std::get_if<std::int64_t>(&spec.shape[axis]) : nullptr;
    if (size == nullptr) throw BackendError(spec.name + ": axis " + std::to_string(axis) + " has no fixed size");
    return *size;
}

std::int64_t width(const TensorSpec& spec) {
    return number(spec, spec.shape.empty() ? 0 : spec.shape.size() - 1);
}

}  // namespace

StepBuffers::StepBuffers(DeviceMemory& memory, const TrtSession& embed, const TrtSession& decoder)
    : rows(decoder.max_batch()),
      hidden(width(tensor(embed.outputs(), names::text_embeds))),
      vocab(width(tensor(decoder.outputs(), names::logits))) {
    const TensorSpec& positions = tensor(decoder.inputs(), names::position_ids);
    axis_dimension = positions.shape.size() == 3;
    axes = axis_dimension ? number(positions, 1) : 1;
    field = round_up(8 * rows * axes, alignment);  // so that each begins at an address that can be bound
    host_block = memory.driver().allocate_host(block_bytes());
    std::fill_n(host_block.get(), block_bytes(), std::byte{0});
    block = memory.zeros(DType::uint8, {block_bytes()});
    logits_index = memory.zeros(DType::int64, {rows, 1});
    embeds = memory.empty(dtype_from_name(tensor(embed.outputs(), names::text_embeds).dtype), {rows, 1, hidden});
    logits = memory.empty(DType::float32, {rows, 1, vocab});
    host_logits = memory.driver().allocate_host(4 * rows * vocab);
}

DecodeStep::DecodeStep(TrtSession& embed, TrtSession& decoder, const TrtCache& cache, StepBuffers& buffers, bool record)
    : driver_(decoder.engine().memory().driver()),
      workspace_(decoder.engine().workspace()),
      buffers_(buffers),
      batch_(cache.batch()),
      record_(record) {
    const Binding embedding{buffers.embeds.address(), {batch_, 1, buffers.hidden}};
    const Shape position_shape = buffers.axis_dimension ? Shape{batch_, buffers.axes, 1} : Shape{batch_, 1};
    Bindings ids{{names::input_ids, {buffers.device(ids_field), {batch_, 1}}}};
    Bindings embedded{{names::text_embeds, embedding}};
    Bindings inputs{{names::inputs_embeds, embedding},
                    {names::position_ids, {buffers.device(position_field), position_shape}},
                    {names::write_index, {buffers.device(write_field), {batch_}}},
                    {names::logits_index, {buffers.logits_index.address(), {batch_, 1}}}};
    Bindings outputs{{names::logits, {buffers.logits.address(), {batch_, 1, buffers.vocab}}}};
    // Separate contexts: a recording is valid only as long as nothing else is set in its context.
    const auto open = [&](TrtSession& session, Bindings& read, Bindings& written) {
        Shapes shapes;
        for (const auto& [name, binding] : read) shapes[name] = binding.shape;
        auto context = session.engine().context(choose_profile(session.component(), shapes, {}));
        if (&session == &decoder) session.bind_cache(cache, read, written);
        context->bind(read, written);
        contexts_.push_back(std::move(context));
    };
    open(embed, ids, embedded);
    open(decoder, inputs, outputs);
    generation_ = workspace_.generation();
}

Tensor DecodeStep::run(const std::vector<std::int64_t>& token, const std::vector<std::int64_t>& position,
                       const std::vector<std::int64_t>& write_index) {
    std::copy_n(token.begin(), batch_, buffers_.host(ids_field));
    std::copy_n(write_index.begin(), batch_, buffers_.host(write_field));
    std::copy_n(position.begin(), batch_ * buffers_.axes, buffers_.host(position_field));
    if (generation_ != workspace_.generation()) {
        graph_.reset();
        warm_ = false;
        generation_ = workspace_.generation();
    }
    // The first run of a context may allocate and compile, which cannot be recorded.
    if (graph_ == nullptr && record_ && warm_) {
        try {
            graph_ = driver_.record([this] { enqueue(); });
        } catch (const BackendError& error) {
            throw BackendError("the decode step cannot be recorded as a CUDA graph: " + error.message(),
                               "--provider-option cuda_graph=off");
        }
    }
    if (graph_ != nullptr) {
        graph_->launch();
    } else {
        enqueue();
    }
    warm_ = true;
    driver_.synchronize();
    return Tensor(DType::float32, {batch_, buffers_.vocab}, buffers_.host_logits, buffers_.host_logits.get(),
                  Place::host);
}

void DecodeStep::enqueue() {
    driver_.to_device(buffers_.block.address(), buffers_.host_block.get(), buffers_.block_bytes());
    for (const auto& context : contexts_) context->enqueue();
    driver_.to_host(buffers_.host_logits.get(), buffers_.logits.address(), 4 * batch_ * buffers_.vocab);
}

}  // namespace trtprune::backend::tensorrt
