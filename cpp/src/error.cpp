#include <trtprune/error.hpp>

#include "files/printable.hpp"

namespace trtprune {

namespace {

std::string joined(const std::string& message, const std::string& hint) {
    return hint.empty() ? message : message + " (" + hint + ")";
}

}  // namespace

Error::Error(ErrorCode code, const std::string& message, const std::string& hint)
    : std::runtime_error(joined(files::one_line(message), files::one_line(hint))),
      code_(code),
      message_(files::one_line(message)),
      hint_(files::one_line(hint)) {}

Error::~Error() = default;

}  // namespace trtprune
