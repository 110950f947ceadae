#include "runtime/rank.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace trtprune::runtime {

namespace {

using Column = std::vector<double>;

constexpr int most_sweeps = 60;

double product(const Column& a, const Column& b, std::size_t first) {
    double total = 0;
    for (std::size_t i = first; i < a.size(); ++i) total += a[i] * b[i];
    return total;
}

// The triangle R of columns = Q R, by Householder's reflections: it has the columns' singular values and few rows.
void reduce(std::vector<Column>& columns) {
    const std::size_t count = columns.size();
    for (std::size_t k = 0; k < count; ++k) {
        Column& own = columns[k];
        const double norm = std::sqrt(product(own, own, k));
        if (norm == 0) continue;
        Column reflector(own.size(), 0.0);
        std::copy(own.begin() + static_cast<std::ptrdiff_t>(k), own.end(),
                  reflector.begin() + static_cast<std::ptrdiff_t>(k));
        reflector[k] += own[k] < 0 ? -norm : norm;
        const double scale = 2 / product(reflector, reflector, k);
        for (std::size_t j = k; j < count; ++j) {
            const double factor = scale * product(reflector, columns[j], k);
            for (std::size_t i = k; i < reflector.size(); ++i) columns[j][i] -= factor * reflector[i];
        }
    }
    for (Column& column : columns) column.resize(std::min(column.size(), count));
}

// Turns two columns until they are at a right angle (Hestenes' one-sided Jacobi method); whether they were not.
bool turn(Column& a, Column& b) {
    const double aa = product(a, a, 0), bb = product(b, b, 0), ab = product(a, b, 0);
    if (std::abs(ab) <= 1e-15 * std::sqrt(aa * bb)) return false;
    const double zeta = (bb - aa) / (2 * ab);
    const double t = (zeta < 0 ? -1 : 1) / (std::abs(zeta) + std::sqrt(1 + zeta * zeta));
    const double c = 1 / std::sqrt(1 + t * t), s = c * t;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double x = a[i], y = b[i];
        a[i] = c * x - s * y;
        b[i] = s * x + c * y;
    }
    return true;
}

}  // namespace

std::int64_t matrix_rank(const backend::Tensor& attention) {
    const float* values = attention.data<float>();
    const auto rows = static_cast<std::size_t>(attention.shape().at(0));
    const auto width = static_cast<std::size_t>(attention.shape().at(1));
    if (std::any_of(values, values + rows * width, [](float value) { return !std::isfinite(value); })) return 0;
    // The shorter side as columns.
    const bool tall = rows >= width;
    std::vector<Column> columns(tall ? width : rows, Column(tall ? rows : width));
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = 0; j < width; ++j) {
            (tall ? columns[j][i] : columns[i][j]) = static_cast<double>(values[i * width + j]);
        }
    }
    reduce(columns);
    bool turned = true;
    for (int sweep = 0; turned && sweep < most_sweeps; ++sweep) {
        turned = false;
        for (std::size_t i = 0; i < columns.size(); ++i) {
            for (std::size_t j = i + 1; j < columns.size(); ++j) turned = turn(columns[i], columns[j]) || turned;
        }
    }
    std::vector<double> singular;
    for (const Column& column : columns) singular.push_back(std::sqrt(product(column, column, 0)));
    const double most = singular.empty() ? 0 : *std::max_element(singular.begin(), singular.end());
    const auto eps = static_cast<double>(std::numeric_limits<float>::epsilon());
    const double limit = static_cast<double>(std::max(rows, width)) * eps * most;
    return std::count_if(singular.begin(), singular.end(), [&](double value) { return value > limit; });
}

}  // namespace trtprune::runtime
