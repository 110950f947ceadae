#pragma once

#include <trtprune/trtprune.h>

#include <cstdint>
#include <memory>
#include <string>
#include <trtprune/vlm.hpp>

namespace trtprune::c_api {

/// What an error handle stands for.
struct ErrorObject {
    std::int32_t code;
    std::string message;
    std::string hint;
};

/// What an image handle stands for.
struct ImageObject {
    Image image;
};

/// What a model handle stands for.
struct VlmObject {
    Vlm vlm;
    Info info;
};

/// What a conversation handle stands for; the model lives as long.
struct ConversationObject {
    std::shared_ptr<VlmObject> owner;
    Conversation conversation;
};

/// What a result handle stands for.
struct ResultObject {
    Result result;
    std::string json;
};

/// For each kind of object: its handle, the number of the kind, its noun in messages.
template <class Object>
struct HandleOf;

template <>
struct HandleOf<ErrorObject> {
    using Type = trtprune_error;
    static constexpr std::uintptr_t kind = 1;
    static constexpr const char* noun = "error";
};
template <>
struct HandleOf<ImageObject> {
    using Type = trtprune_image;
    static constexpr std::uintptr_t kind = 2;
    static constexpr const char* noun = "image";
};
template <>
struct HandleOf<VlmObject> {
    using Type = trtprune_vlm;
    static constexpr std::uintptr_t kind = 3;
    static constexpr const char* noun = "vlm";
};
template <>
struct HandleOf<ConversationObject> {
    using Type = trtprune_conversation;
    static constexpr std::uintptr_t kind = 4;
    static constexpr const char* noun = "conversation";
};
template <>
struct HandleOf<ResultObject> {
    using Type = trtprune_result;
    static constexpr std::uintptr_t kind = 5;
    static constexpr const char* noun = "result";
};

/// Puts an object under a number that no object of this process had before or will have.
std::uintptr_t add(std::uintptr_t kind, std::shared_ptr<void> object);
/// The object of a number; empty if there is none of this kind.
std::shared_ptr<void> find(std::uintptr_t kind, std::uintptr_t number);
/// Takes the object out; empty if there is none of this kind.
std::shared_ptr<void> take(std::uintptr_t kind, std::uintptr_t number);

/// A new handle.  It is a number and no address: nothing is read through it, so that a wrong one does no harm.
template <class Object>
typename HandleOf<Object>::Type* handle(std::shared_ptr<Object> object) {
    const std::uintptr_t number = add(HandleOf<Object>::kind, std::move(object));
    return reinterpret_cast<typename HandleOf<Object>::Type*>(number);
}

/// The handle's object; empty for NULL, a freed handle, or one of another kind.
template <class Object>
std::shared_ptr<Object> object_or_none(const typename HandleOf<Object>::Type* handle) {
    return std::static_pointer_cast<Object>(find(HandleOf<Object>::kind, reinterpret_cast<std::uintptr_t>(handle)));
}

/// \throws InputError  for a handle without an object.
[[noreturn]] void refuse_handle(const void* handle, const char* noun);

/// The handle's object.
///
/// \throws InputError  for NULL, a freed handle, or one of another kind.
template <class Object>
std::shared_ptr<Object> object(const typename HandleOf<Object>::Type* handle) {
    std::shared_ptr<Object> known = object_or_none<Object>(handle);
    if (!known) refuse_handle(handle, HandleOf<Object>::noun);
    return known;
}

/// Ends a handle; its object goes as soon as no call uses it.
///
/// \returns TRTPRUNE_OK, also for NULL; TRTPRUNE_INPUT for a handle without an object.
template <class Object>
std::int32_t release(typename HandleOf<Object>::Type* handle) noexcept {
    if (handle == nullptr) return TRTPRUNE_OK;
    return take(HandleOf<Object>::kind, reinterpret_cast<std::uintptr_t>(handle)) ? TRTPRUNE_OK : TRTPRUNE_INPUT;
}

}  // namespace trtprune::c_api
