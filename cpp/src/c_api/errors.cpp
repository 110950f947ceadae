#include <trtprune/trtprune.h>

#include "c_api/boundary.hpp"

namespace trtprune::c_api {

std::int32_t report(trtprune_error** error, ErrorCode code, const char* message, const char* hint) noexcept {
    const auto number = static_cast<std::int32_t>(code);
    if (error == nullptr) return number;
    try {
        // Error makes one printable line of what may come from a library.
        const Error line(code, message, hint);
        *error = handle(std::make_shared<ErrorObject>(ErrorObject{number, line.message(), line.hint()}));
    } catch (...) {
        *error = nullptr;
    }
    return number;
}

}  // namespace trtprune::c_api

using namespace trtprune::c_api;

extern "C" {

uint32_t trtprune_abi_version(void) {
    return TRTPRUNE_ABI_VERSION;
}

const char* trtprune_version(void) {
    return TRTPRUNE_VERSION;
}

int32_t trtprune_error_code(const trtprune_error* error) {
    const auto known = object_or_none<ErrorObject>(error);
    return known ? known->code : -1;
}

const char* trtprune_error_message(const trtprune_error* error) {
    const auto known = object_or_none<ErrorObject>(error);
    return known ? known->message.c_str() : nullptr;
}

const char* trtprune_error_hint(const trtprune_error* error) {
    const auto known = object_or_none<ErrorObject>(error);
    return known ? known->hint.c_str() : nullptr;
}

int32_t trtprune_error_free(trtprune_error* error) {
    return release<ErrorObject>(error);
}

}  // extern "C"
