#pragma once

namespace trtprune::backend {

/// Whether products of 8-bit integers are exact on this processor.
///
/// Without VNNI, x86 processors add pairs of products up in 16 bits with saturation, and there is no error: the numbers
/// are just smaller.
bool exact_products();

}  // namespace trtprune::backend
