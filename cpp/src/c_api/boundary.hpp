#pragma once

#include <trtprune/trtprune.h>

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <trtprune/error.hpp>
#include <utility>

#include "c_api/handles.hpp"

namespace trtprune::c_api {

/// Hands an error object to the caller, if it wants one and there is memory for it; returns its code.
std::int32_t report(trtprune_error** error, ErrorCode code, const char* message, const char* hint) noexcept;

/// Runs a call's body; no exception leaves it.
template <class Body>
std::int32_t guarded(trtprune_error** error, Body&& body) noexcept {
    if (error != nullptr) *error = nullptr;
    try {
        std::forward<Body>(body)();
        return TRTPRUNE_OK;
    } catch (const Error& failure) {
        return report(error, failure.code(), failure.message().c_str(), failure.hint().c_str());
    } catch (const std::bad_alloc&) {
        return report(error, ErrorCode::internal, "not enough memory", "a smaller image, or a shorter answer");
    } catch (const std::exception& failure) {
        return report(error, ErrorCode::internal, failure.what(), "this is a fault of trtprune; please report it");
    } catch (...) {
        return report(error, ErrorCode::internal, "unknown failure", "this is a fault of trtprune; please report it");
    }
}

/// The place for a new handle, set to NULL.
///
/// \throws InputError  if the caller gave none.
template <class Handle>
Handle*& output(Handle** place, const char* name) {
    if (place == nullptr) throw InputError(std::string(name) + "=NULL", "the address of a handle to be filled");
    *place = nullptr;
    return *place;
}

}  // namespace trtprune::c_api
