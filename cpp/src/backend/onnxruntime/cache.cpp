#include "backend/onnxruntime/cache.hpp"

#include <cstdio>
#include <cstring>
#include <trtprune/error.hpp>
#include <utility>

namespace trtprune::backend::onnxruntime {

namespace {

constexpr std::int64_t alignment = 64;

std::int64_t padded(std::int64_t bytes) {
    return (bytes + alignment - 1) / alignment * alignment;
}

BackendError no_memory(std::int64_t bytes) {
    char size[32];
    std::snprintf(size, sizeof size, "%.0f", static_cast<double>(bytes) / 1e6);
    return BackendError("no memory for a KV cache of " + std::string(size) + " MB",
                        "a smaller batch, keep or max_new_tokens");
}

}  // namespace

OrtCache::OrtCache(std::shared_ptr<const Library> library, const std::vector<CachePair>& pairs, std::int64_t batch,
                   std::int64_t capacity, const OrtCache* reuse)
    : library_(std::move(library)), batch_(batch), capacity_(capacity) {
    const Dims dims{{"batch", batch}, {"capacity", capacity}};
    std::vector<std::pair<DType, Shape>> kinds;
    std::int64_t total = 0;
    for (const CachePair& pair : pairs) {
        const auto shape = resolve_shape(pair.spec, dims);
        if (!shape) throw BackendError(pair.past + ": its shape has unknown dimensions");
        kinds.emplace_back(dtype_from_name(pair.spec.dtype), *shape);
        const std::int64_t bytes = volume(*shape) * item_size(kinds.back().first);
        nbytes_ += bytes;
        total += padded(bytes);
    }
    // A much larger block would stay allocated for ever after one long request.
    if (reuse != nullptr && total <= reuse->block_.nbytes() && reuse->block_.nbytes() <= 4 * total) {
        block_ = reuse->block_;
    } else {
        try {
            block_ = Tensor::empty(DType::uint8, {total});
        } catch (const BackendError&) {
            throw no_memory(nbytes_);
        }
    }
    // Masked slots are multiplied by a zero weight, and 0 × NaN would be NaN.
    std::memset(block_.address(), 0, static_cast<std::size_t>(block_.nbytes()));
    std::int64_t start = 0;
    for (const auto& [dtype, shape] : kinds) {
        buffers_.emplace_back(dtype, shape, nullptr, block_.bytes() + start, Place::host);
        values_.emplace_back(library_->view(buffers_.back()), Release<OrtValue>{library_->api().ReleaseValue});
        start += padded(buffers_.back().nbytes());
    }
}

void OrtCache::begin_with(const OrtCache& other) {
    for (std::size_t i = 0; i < buffers_.size(); ++i) {
        const Tensor& source = other.buffers_[i];
        const Tensor& target = buffers_[i];
        const std::int64_t rows = source.shape().at(0) * source.shape().at(1);  // batch × heads
        const std::int64_t length = rows == 0 ? 0 : source.nbytes() / rows;
        const std::int64_t stride = rows == 0 ? 0 : target.nbytes() / rows;
        for (std::int64_t row = 0; row < rows; ++row) {
            std::memcpy(target.bytes() + row * stride, source.bytes() + row * length, static_cast<std::size_t>(length));
        }
    }
}

}  // namespace trtprune::backend::onnxruntime
