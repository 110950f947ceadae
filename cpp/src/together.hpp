#pragma once

#include <exception>
#include <functional>
#include <vector>

namespace trtprune {

/// Runs jobs on several threads, this one among them, each thread with the next job that nobody has taken.
///
/// \param jobs     The longest one first gives the shortest time.
/// \param threads  The most threads; where the system has no more of them, fewer.
/// \return What each job threw, or nullptr.
std::vector<std::exception_ptr> run_together(const std::vector<std::function<void()>>& jobs, int threads);

}  // namespace trtprune
