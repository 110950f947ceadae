#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

/// The runtime libraries behind one small interface; the twin of `trtprune.backends`.
namespace trtprune::backend {

/// The data type of an array; `config.json` has its NumPy name.
enum class DType { float32, float16, bfloat16, int64, int32, uint8, boolean };

/// Bytes of an element.
std::int64_t item_size(DType dtype);
/// The NumPy name: `float32`, `bool`.
std::string_view dtype_name(DType dtype);
/// The data type of a NumPy name.
///
/// \throws BackendError  for a type that no graph of this project has.
DType dtype_from_name(std::string_view name);

/// Size of each axis.
using Shape = std::vector<std::int64_t>;

/// The number of elements.
///
/// \throws BackendError  for a negative size, and for more elements than fit into memory.
std::int64_t volume(const Shape& shape);
/// As a message quotes it: `[1, 576]`.
std::string shown(const Shape& shape);

/// Where an array's elements are.
enum class Place { host, device };

/// A C-contiguous array in memory of a backend, or a view of one along its first axis.  Copies share the elements.
class Tensor {
  public:
    /// No array at all.
    Tensor() = default;

    /// An array in memory that somebody else allocated.
    ///
    /// \param owner    Keeps the memory alive; for memory that outlives all uses, empty.
    /// \param address  The first element; on a device, an address there.
    Tensor(DType dtype, Shape shape, std::shared_ptr<void> owner, void* address, Place place);

    /// A host array of undefined content.
    ///
    /// \throws BackendError  if there is no memory for it.
    static Tensor empty(DType dtype, Shape shape);
    /// A host array of zeros.
    static Tensor zeros(DType dtype, Shape shape);
    /// A host array with a copy of these numbers.
    static Tensor of(const std::vector<std::int64_t>& values, Shape shape);
    static Tensor of(const std::vector<std::int64_t>& values);
    static Tensor of(const std::vector<float>& values, Shape shape);

    DType dtype() const noexcept { return dtype_; }
    const Shape& shape() const noexcept { return shape_; }
    Place place() const noexcept { return place_; }
    /// Whether this is an array.
    explicit operator bool() const noexcept { return address_ != nullptr; }
    /// Size of the first axis.
    std::int64_t length() const { return shape_.at(0); }
    /// Number of elements.
    std::int64_t size() const noexcept { return size_; }
    std::int64_t nbytes() const { return size_ * item_size(dtype_); }

    void* address() const noexcept { return address_; }
    /// The elements of a host array, as `T`.
    ///
    /// \throws BackendError  for an array of another type, or on a device.
    template <typename T>
    T* data() const {
        check_access(dtype_of<T>());
        return static_cast<T*>(address_);
    }
    /// The bytes of a host array.
    std::byte* bytes() const;

    /// An element of the first axis, a view.
    Tensor at(std::int64_t index) const;
    /// Rows `begin` to `end` of the first axis, a view.
    Tensor slice(std::int64_t begin, std::int64_t end) const;
    /// The same with a first axis of one, a view.
    Tensor as_batch() const;
    /// The same elements in another shape, a view.
    Tensor reshaped(Shape shape) const;

  private:
    template <typename T>
    static constexpr DType dtype_of();
    void check_access(DType wanted) const;

    DType dtype_ = DType::float32;
    Shape shape_;
    std::int64_t size_ = 0;
    std::shared_ptr<void> owner_;
    void* address_ = nullptr;
    Place place_ = Place::host;
};

template <>
constexpr DType Tensor::dtype_of<float>() {
    return DType::float32;
}
template <>
constexpr DType Tensor::dtype_of<std::int64_t>() {
    return DType::int64;
}
template <>
constexpr DType Tensor::dtype_of<std::int32_t>() {
    return DType::int32;
}
template <>
constexpr DType Tensor::dtype_of<std::uint8_t>() {
    return DType::uint8;
}
template <>
constexpr DType Tensor::dtype_of<bool>() {
    return DType::boolean;
}

/// Arrays by the names of a graph's tensors.
using Tensors = std::map<std::string, Tensor, std::less<>>;

}  // namespace trtprune::backend
