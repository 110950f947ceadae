#include "backend/tensor.hpp"

#include <array>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <trtprune/error.hpp>
#include <utility>

namespace trtprune::backend {

namespace {

struct Kind {
    DType dtype;
    std::string_view name;
    std::int64_t size;
};

constexpr std::array<Kind, 7> kinds{{
    {DType::float32, "float32", 4},
    {DType::float16, "float16", 2},
    {DType::bfloat16, "bfloat16", 2},
    {DType::int64, "int64", 8},
    {DType::int32, "int32", 4},
    {DType::uint8, "uint8", 1},
    {DType::boolean, "bool", 1},
}};

constexpr std::size_t alignment = 64;
constexpr std::int64_t most_elements = std::numeric_limits<std::int64_t>::max() / 16;

BackendError no_memory(std::int64_t bytes) {
    return BackendError("no memory for an array of " + std::to_string(bytes / 1'000'000) + " MB",
                        "a smaller batch, keep or max_new_tokens");
}

}  // namespace

std::int64_t item_size(DType dtype) {
    return kinds[static_cast<std::size_t>(dtype)].size;
}

std::string_view dtype_name(DType dtype) {
    return kinds[static_cast<std::size_t>(dtype)].name;
}

DType dtype_from_name(std::string_view name) {
    for (const Kind& kind : kinds) {
        if (kind.name == name) return kind.dtype;
    }
    throw BackendError("a tensor of type " + std::string(name) + ", which is not supported", "build it again");
}

std::int64_t volume(const Shape& shape) {
    std::int64_t count = 1;
    for (const std::int64_t size : shape) {
        if (size < 0 || (size > 0 && count > most_elements / size)) {
            throw BackendError("an array of shape " + shown(shape) + " is impossible");
        }
        count *= size;
    }
    return count;
}

std::string shown(const Shape& shape) {
    std::string text = "[";
    for (const std::int64_t size : shape) {
        if (text.size() > 1) text += ", ";
        text += std::to_string(size);
    }
    return text + "]";
}

Tensor::Tensor(DType dtype, Shape shape, std::shared_ptr<void> owner, void* address, Place place)
    : dtype_(dtype),
      shape_(std::move(shape)),
      size_(volume(shape_)),
      owner_(std::move(owner)),
      address_(address),
      place_(place) {}

Tensor Tensor::empty(DType dtype, Shape shape) {
    const std::int64_t bytes = volume(shape) * item_size(dtype);
    // Rounded up, as aligned_alloc wants it; never 0, so that an empty array has an address.
    const std::size_t rounded = (static_cast<std::size_t>(bytes) + alignment) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, rounded);
    if (memory == nullptr) throw no_memory(bytes);
    return Tensor(dtype, std::move(shape), std::shared_ptr<void>(memory, std::free), memory, Place::host);
}

Tensor Tensor::zeros(DType dtype, Shape shape) {
    Tensor array = empty(dtype, std::move(shape));
    std::memset(array.address_, 0, static_cast<std::size_t>(array.nbytes()));
    return array;
}

namespace {

template <typename T>
Tensor copy_of(DType dtype, const std::vector<T>& values, Shape shape) {
    Tensor array = Tensor::empty(dtype, std::move(shape));
    if (array.size() != static_cast<std::int64_t>(values.size())) {
        throw BackendError(std::to_string(values.size()) + " numbers do not fill " + shown(array.shape()));
    }
    if (!values.empty()) std::memcpy(array.address(), values.data(), values.size() * sizeof(T));
    return array;
}

}  // namespace

Tensor Tensor::of(const std::vector<std::int64_t>& values, Shape shape) {
    return copy_of(DType::int64, values, std::move(shape));
}

Tensor Tensor::of(const std::vector<std::int64_t>& values) {
    return of(values, {static_cast<std::int64_t>(values.size())});
}

Tensor Tensor::of(const std::vector<float>& values, Shape shape) {
    return copy_of(DType::float32, values, std::move(shape));
}

void Tensor::check_access(DType wanted) const {
    if (place_ != Place::host || dtype_ != wanted) {
        throw BackendError("an array of " + std::string(dtype_name(dtype_)) + " was read as " +
                           std::string(dtype_name(wanted)) + (place_ == Place::host ? "" : " on the host"));
    }
}

std::byte* Tensor::bytes() const {
    check_access(dtype_);
    return static_cast<std::byte*>(address_);
}

Tensor Tensor::at(std::int64_t index) const {
    const Tensor row = slice(index, index + 1);
    return row.reshaped(Shape(shape_.begin() + 1, shape_.end()));
}

Tensor Tensor::slice(std::int64_t begin, std::int64_t end) const {
    if (shape_.empty() || begin < 0 || end < begin || end > shape_[0]) {
        throw BackendError("rows " + std::to_string(begin) + " to " + std::to_string(end) + " of an array " +
                           shown(shape_));
    }
    Tensor view = *this;
    const std::int64_t row = shape_[0] == 0 ? 0 : nbytes() / shape_[0];
    view.shape_[0] = end - begin;
    view.size_ = volume(view.shape_);
    view.address_ = static_cast<std::byte*>(address_) + begin * row;
    return view;
}

Tensor Tensor::as_batch() const {
    Tensor view = *this;
    view.shape_.insert(view.shape_.begin(), 1);
    return view;
}

Tensor Tensor::reshaped(Shape shape) const {
    Tensor view = *this;
    view.shape_ = std::move(shape);
    if (volume(view.shape_) != size_) {
        throw BackendError("an array " + shown(shape_) + " has no shape " + shown(view.shape_));
    }
    return view;
}

}  // namespace trtprune::backend
