#include "runtime/decoder.hpp"

#include <algorithm>
#include <utility>

#include "backend/tensor_names.hpp"
#include "runtime/cut_decoder.hpp"

namespace trtprune::runtime {

namespace roles = engine_dir::roles;

namespace {

class WholeCache : public DecoderCache {
  public:
    explicit WholeCache(std::unique_ptr<backend::Cache> cache) : buffers(std::move(cache)) {}

    std::int64_t capacity() const override { return buffers->capacity(); }
    std::int64_t nbytes() const override { return buffers->nbytes(); }

    std::unique_ptr<backend::Cache> buffers;
};

WholeCache& whole(DecoderCache& cache) {
    return dynamic_cast<WholeCache&>(cache);
}

}  // namespace

std::unique_ptr<Decoder> open_decoder(const Chain& chain) {
    if (chain.config().segments().empty()) return std::make_unique<WholeDecoder>(chain);
    return std::make_unique<CutDecoder>(chain);
}

Tensor position_table(const std::vector<const std::vector<Ids>*>& rows, const Ids& first, std::int64_t width) {
    const std::size_t axes = rows.at(0)->size();
    const Tensor table =
        Tensor::zeros(DType::int64, {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(axes), width});
    std::int64_t* line = table.data<std::int64_t>();
    for (std::size_t b = 0; b < rows.size(); ++b) {
        for (const Ids& axis : *rows[b]) {
            std::copy(axis.begin() + first[b], axis.end(), line);
            line += width;
        }
    }
    return table;
}

Tensor last_logits(backend::Memory& memory, const Tensor& logits) {
    const Tensor host = memory.to_host(logits);
    return host.reshaped({host.shape().at(0), host.shape().at(1) * host.shape().at(2)});
}

WholeDecoder::WholeDecoder(const Chain& chain)
    : chain_(chain), pool_(chain.session(roles::decoder), chain.config().kv) {}

std::int64_t WholeDecoder::max_batch() const {
    return chain_.session(roles::decoder).max_batch();
}

std::unique_ptr<DecoderCache> WholeDecoder::take(std::int64_t batch, std::int64_t tokens) {
    return std::make_unique<WholeCache>(pool_.take(batch, tokens));
}

std::unique_ptr<DecoderCache> WholeDecoder::grow(std::unique_ptr<DecoderCache> cache, std::int64_t tokens) {
    WholeCache& own = whole(*cache);
    own.buffers = pool_.grow(std::move(own.buffers), tokens);
    return cache;
}

void WholeDecoder::give_back(std::unique_ptr<DecoderCache> cache) {
    pool_.give_back(std::move(whole(*cache).buffers));
}

Prefill WholeDecoder::prefill(const std::vector<const Layout*>& rows, DecoderCache& cache, const Ids& start) {
    const auto batch = static_cast<std::int64_t>(rows.size());
    std::int64_t width = 0;
    Ids last;
    std::vector<std::vector<Tensor>> pieces;
    std::vector<const std::vector<Ids>*> positions;
    Prefill result;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const std::int64_t length = rows[i]->length() - start[i];
        width = std::max(width, length);
        last.push_back(length - 1);
        pieces.push_back(skip_rows(rows[i]->embeds, start[i]));
        positions.push_back(&rows[i]->positions);
        result.kept.push_back(rows[i]->kept);
        result.segment_tokens.emplace_back();
    }
    // Rows are padded on the right: a padding token writes behind the row's end, where the row's next real token
    // overwrites it before any query attends to it.
    const Tensors out = chain_.session(roles::decoder)
                            .run({{names::inputs_embeds, chain_.memory().join(pieces, width)},
                                  {names::position_ids, position_table(positions, start, width)},
                                  {names::write_index, Tensor::of(start)},
                                  {names::logits_index, Tensor::of(last, {batch, 1})}},
                                 whole(cache).buffers.get());
    result.logits = last_logits(chain_.memory(), out.at(names::logits));
    return result;
}

std::unique_ptr<backend::Step> WholeDecoder::step(DecoderCache& cache) {
    return chain_.step(*whole(cache).buffers);
}

}  // namespace trtprune::runtime
