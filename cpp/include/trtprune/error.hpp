#pragma once

#include <stdexcept>
#include <string>
#include <trtprune/export.hpp>

namespace trtprune {

/// The kind of an expected failure; the numbers are those of the C interface and never change.
enum class ErrorCode : int {
    input = 1,       ///< an image, prompt or setting that cannot be used
    budget = 2,      ///< a token budget that this build cannot serve
    engine_dir = 3,  ///< an engine directory that is damaged, foreign, too new, or of another backend
    backend = 4,     ///< a library, provider or device that is missing or refuses the work
    busy = 5,        ///< a second call while one is running
    stopped = 6,     ///< a callback that failed
    internal = 7,    ///< a fault of trtprune itself, or no memory; only in the C interface
};

/// Base of all expected failures: one printable line that names the file or argument at fault, and a hint.
///
/// Texts are those of the Python package in its own spelling of arguments (`keep=64`).
class TRTPRUNE_API Error : public std::runtime_error {
  public:
    /// \param code     The kind of failure.
    /// \param message  What is wrong; becomes one printable line of at most 500 characters.
    /// \param hint     What the user can change, likewise; empty if there is nothing to say.
    Error(ErrorCode code, const std::string& message, const std::string& hint = {});
    ~Error() override;

    ErrorCode code() const noexcept { return code_; }
    /// The message without the hint; `what()` has both.
    const std::string& message() const noexcept { return message_; }
    /// What to change; may be empty.
    const std::string& hint() const noexcept { return hint_; }

  private:
    ErrorCode code_;
    std::string message_;
    std::string hint_;
};

/// An image, prompt or setting that cannot be used.
class TRTPRUNE_API InputError : public Error {
  public:
    explicit InputError(const std::string& message, const std::string& hint = {})
        : Error(ErrorCode::input, message, hint) {}
};

/// A token budget that this build cannot serve.
class TRTPRUNE_API BudgetError : public Error {
  public:
    explicit BudgetError(const std::string& message, const std::string& hint = {})
        : Error(ErrorCode::budget, message, hint) {}
};

/// An engine directory that is damaged, foreign, too new, or of another backend.
class TRTPRUNE_API EngineDirError : public Error {
  public:
    explicit EngineDirError(const std::string& message, const std::string& hint = {})
        : Error(ErrorCode::engine_dir, message, hint) {}
};

/// A library, provider or device that is missing or refuses the work.
class TRTPRUNE_API BackendError : public Error {
  public:
    explicit BackendError(const std::string& message, const std::string& hint = {})
        : Error(ErrorCode::backend, message, hint) {}
};

/// A second call while one is running.
class TRTPRUNE_API BusyError : public Error {
  public:
    explicit BusyError(const std::string& message, const std::string& hint = {})
        : Error(ErrorCode::busy, message, hint) {}
};

}  // namespace trtprune
