#pragma once

namespace trtprune::backend {

/// Processors this process may use: its affinity mask, cut to the container's CPU quota; at least 1.
int available_threads();

}  // namespace trtprune::backend
