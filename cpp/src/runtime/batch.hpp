#pragma once

#include <exception>
#include <functional>
#include <trtprune/vlm.hpp>
#include <vector>

#include "runtime/pipeline.hpp"

namespace trtprune::runtime {

/// Answers requests as one batch, each row with its own settings.
///
/// \param options  Settings of the rows, for requests without their own.
/// \param on_text  Receives the text of the first row piece by piece; false ends its answer.
/// \throws InputError, BudgetError  for a setting, image or prompt that cannot be used.
std::vector<Result> run_batch(const Pipeline& pipeline, const std::vector<Request>& requests,
                              const GenerateOptions& options, const TextCallback& on_text = {});

/// A callback that threw, and its exception.
struct CallbackFailure {
    std::exception_ptr exception;
};

/// What an answer's text goes to after each round of tokens.
///
/// \throws CallbackFailure  from the function, where the callback throws.
std::function<void()> telling(Answer& answer, const TextCallback& on_text);

}  // namespace trtprune::runtime
