#pragma once

#include <memory>

#include "backend/tensor.hpp"
#include "images/processor.hpp"

namespace trtprune::runtime {

using backend::DType;
using backend::Tensor;
using backend::Tensors;

/// The outputs of the vision graph for one image, before pruning.
///
/// They stay in the backend's memory, like everything computed from them.
struct Features {
    Tensor image;                                   ///< [N, D] in the build's dtype, a row for each visual token
    std::shared_ptr<const images::TokenPlan> plan;  ///< what the visual tokens show
    Tensors extras;  ///< the other outputs by name, without their batch dimension, such as `cls_attention` float32 [N]
    Tensors crops;   ///< those that have no row for each patch, with a row for each crop: `cls_feature` [crops, D]

    /// N, the image's visual tokens before pruning.
    std::int64_t visual_tokens() const { return image.length(); }
};

}  // namespace trtprune::runtime
