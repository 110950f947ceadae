#pragma once

#include "backend/tensor.hpp"

namespace trtprune::runtime {

/// The numerical rank of an attention block float32 [R, N] on the host, for chains without a component for it.
///
/// `torch.linalg.matrix_rank`: the number of singular values above max(R, N) · eps · the largest one; 0 for a block
/// that is not finite.
std::int64_t matrix_rank(const backend::Tensor& attention);

}  // namespace trtprune::runtime
