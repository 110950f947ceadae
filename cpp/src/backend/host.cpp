#include "backend/host.hpp"

#include <algorithm>
#include <cstring>
#include <trtprune/error.hpp>
#include <utility>

#include "backend/tensor_names.hpp"

namespace trtprune::backend {

namespace {

// Whether rows of one array fit into another.
void check_rows(const Tensor& piece, const Tensor& whole, std::size_t axes) {
    const Shape& shape = piece.shape();
    const Shape& wanted = whole.shape();
    if (piece.dtype() == whole.dtype() &&
        std::equal(shape.begin() + 1, shape.end(), wanted.begin() + static_cast<std::ptrdiff_t>(axes), wanted.end()))
        return;
    throw BackendError("rows of " + std::string(dtype_name(piece.dtype())) + " " + shown(shape) + " in an array of " +
                       std::string(dtype_name(whole.dtype())) + " " + shown(wanted));
}

void copy_to(std::byte*& target, const Tensor& piece) {
    const auto bytes = static_cast<std::size_t>(piece.nbytes());
    if (bytes != 0) std::memcpy(target, piece.bytes(), bytes);
    target += bytes;
}

}  // namespace

Tensor HostMemory::join(const std::vector<std::vector<Tensor>>& rows, std::int64_t width) {
    const Tensor& first = rows.at(0).at(0);
    const std::int64_t depth = first.shape().at(1);
    const Tensor joined = Tensor::zeros(first.dtype(), {static_cast<std::int64_t>(rows.size()), width, depth});
    for (std::size_t i = 0; i < rows.size(); ++i) {
        std::int64_t length = 0;
        for (const Tensor& piece : rows[i]) {
            length += piece.length();
            check_rows(piece, joined, 2);
        }
        if (length > width) throw BackendError("a row of " + std::to_string(length) + " does not fit into a batch");
        std::byte* target = joined.at(static_cast<std::int64_t>(i)).bytes();
        for (const Tensor& piece : rows[i]) copy_to(target, piece);
    }
    return joined;
}

Tensor HostMemory::concatenate(const std::vector<Tensor>& pieces) {
    if (pieces.size() == 1) return pieces[0];
    Shape shape = pieces.at(0).shape();
    shape[0] = 0;
    for (const Tensor& piece : pieces) shape[0] += piece.length();
    const Tensor joined = Tensor::empty(pieces[0].dtype(), std::move(shape));
    std::byte* target = joined.bytes();
    for (const Tensor& piece : pieces) {
        check_rows(piece, joined, 1);
        copy_to(target, piece);
    }
    return joined;
}

Tensor HostMemory::take(const Tensor& array, const std::vector<std::int64_t>& rows) {
    bool consecutive = !rows.empty();
    for (std::size_t i = 1; i < rows.size(); ++i) consecutive = consecutive && rows[i] == rows[i - 1] + 1;
    if (consecutive) return array.slice(rows.front(), rows.back() + 1);
    Shape shape = array.shape();
    shape.at(0) = static_cast<std::int64_t>(rows.size());
    const Tensor taken = Tensor::empty(array.dtype(), std::move(shape));
    std::byte* target = taken.bytes();
    for (const std::int64_t row : rows) copy_to(target, array.at(row));
    return taken;
}

Tensor HostMemory::to_host(const Tensor& array) {
    return array;
}

HostStep::HostStep(Session& embed, Session& decoder, Cache& cache)
    : embed_(embed), decoder_(decoder), cache_(cache), first_(Tensor::zeros(DType::int64, {cache.batch(), 1})) {}

Tensor HostStep::run(const std::vector<std::int64_t>& token, const std::vector<std::int64_t>& position,
                     const std::vector<std::int64_t>& write_index) {
    const std::int64_t rows = cache_.batch();
    const std::int64_t axes = static_cast<std::int64_t>(position.size()) / rows;
    Tensors inputs{
        {names::inputs_embeds, embed_.run({{names::input_ids, Tensor::of(token, {rows, 1})}}).at(names::text_embeds)},
        {names::position_ids, Tensor::of(position, {rows, axes, 1})},
        {names::write_index, Tensor::of(write_index)},
        {names::logits_index, first_},
    };
    const Tensor logits = decoder_.run(inputs, &cache_).at(names::logits);
    return logits.reshaped({rows, logits.shape().at(2)});
}

}  // namespace trtprune::backend
