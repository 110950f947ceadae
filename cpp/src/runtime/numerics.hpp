#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

/// Sums, orders and probabilities as NumPy computes them, so that both runtimes draw the same tokens.
namespace trtprune::runtime {

/// The sum in the order of NumPy's `sum`: halves of the array, and eight sums side by side in up to 128 numbers.
template <typename T>
T pairwise_sum(const T* values, std::size_t count) {
    if (count < 8) {
        T total = 0;
        for (std::size_t i = 0; i < count; ++i) total += values[i];
        return total;
    }
    if (count <= 128) {
        T r[8];
        std::copy(values, values + 8, r);
        std::size_t i = 8;
        for (; i < count - count % 8; i += 8) {
            for (std::size_t j = 0; j < 8; ++j) r[j] += values[i + j];
        }
        T total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
        for (; i < count; ++i) total += values[i];
        return total;
    }
    std::size_t half = count / 2;
    half -= half % 8;
    return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
}

template <typename T>
T pairwise_sum(const std::vector<T>& values) {
    return pairwise_sum(values.data(), values.size());
}

/// The largest number of at least one; NaN if there is one.
template <typename T>
T largest(const T* values, std::size_t count) {
    T most = values[0];
    for (std::size_t i = 0; i < count; ++i) {
        if (std::isnan(values[i])) return values[i];
        if (values[i] > most) most = values[i];
    }
    return most;
}

template <typename T>
T largest(const std::vector<T>& values) {
    return largest(values.data(), values.size());
}

/// The place of the largest number, the first of equal ones; of the first NaN, if there is one.
template <typename T>
std::int64_t argmax(const T* values, std::size_t count) {
    std::size_t best = 0;
    for (std::size_t i = 0; i < count; ++i) {
        if (std::isnan(values[i])) return static_cast<std::int64_t>(i);
        if (values[i] > values[best]) best = i;
    }
    return static_cast<std::int64_t>(best);
}

template <typename T>
std::int64_t argmax(const std::vector<T>& values) {
    return argmax(values.data(), values.size());
}

/// NumPy's order of numbers: NaN is the largest.
template <typename T>
bool before(T a, T b) {
    return a < b || (std::isnan(b) && !std::isnan(a));
}

/// The places of the numbers in ascending order; equal ones stay in theirs.
template <typename T>
std::vector<std::size_t> argsort(const std::vector<T>& values) {
    std::vector<std::size_t> order(values.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return before(values[a], values[b]); });
    return order;
}

/// The numbers at these places.
template <typename T>
std::vector<T> at(const std::vector<T>& values, const std::vector<std::size_t>& places) {
    std::vector<T> found;
    found.reserve(places.size());
    for (const std::size_t place : places) found.push_back(values[place]);
    return found;
}

/// Probabilities of scores, in their type.
template <typename T>
std::vector<T> softmax(const std::vector<T>& scores) {
    const T most = largest(scores);
    std::vector<T> weights;
    weights.reserve(scores.size());
    for (const T score : scores) weights.push_back(std::exp(score - most));
    const T total = pairwise_sum(weights);
    for (T& weight : weights) weight /= total;
    return weights;
}

/// Sums of the numbers up to each, one after another.
template <typename T>
std::vector<T> cumulative(std::vector<T> values) {
    T total = 0;
    for (T& value : values) value = total += value;
    return values;
}

}  // namespace trtprune::runtime
