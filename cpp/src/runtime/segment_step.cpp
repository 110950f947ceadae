#include "runtime/segment_step.hpp"

#include <algorithm>
#include <utility>

#include "backend/tensor_names.hpp"

namespace trtprune::runtime {

SegmentStep::SegmentStep(backend::Session& embed, std::vector<backend::Session*> segments, SegmentCaches& cache,
                         backend::Memory& memory, bool rated)
    : embed_(embed), segments_(std::move(segments)), cache_(cache), memory_(memory), rated_(rated) {}

Tensor SegmentStep::run(const Ids& token, const Ids& position, const Ids& write_index) {
    const std::size_t batch = token.size(), axes = position.size() / batch;
    const auto rows = static_cast<std::int64_t>(batch);
    const Tensor first = Tensor::zeros(DType::int64, {rows, 1});
    Tensor states = embed_.run({{names::input_ids, Tensor::of(token, {rows, 1})}}).at(names::text_embeds);
    Tensors out;
    for (std::size_t k = 0; k < segments_.size(); ++k) {
        backend::Cache& part = *cache_.parts[k];
        Ids places = position, slots;
        for (std::size_t b = 0; b < batch; ++b) {
            for (std::size_t axis = 0; axis < axes; ++axis) places[b * axes + axis] -= cache_.shift[k][b];
            // A finished row writes to its last place again.
            slots.push_back(std::min(write_index[b] - cache_.dropped[k][b], part.capacity() - 1));
        }
        Tensors inputs{{k != 0 ? names::hidden_states : names::inputs_embeds, states},
                       {names::position_ids, Tensor::of(places, {rows, static_cast<std::int64_t>(axes), 1})},
                       {names::write_index, Tensor::of(slots)}};
        if (k + 1 == segments_.size()) {
            inputs[names::logits_index] = first;
        } else if (rated_) {  // of one token, and unused: prompts and tokens have the same graph
            inputs[names::rater_index] = first;
        }
        out = segments_[k]->run(inputs, &part);
        if (k + 1 < segments_.size()) states = out.at(names::last_hidden_state);
    }
    return last_logits(memory_, out.at(names::logits));
}

}  // namespace trtprune::runtime
