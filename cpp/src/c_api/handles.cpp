#include "c_api/handles.hpp"

#include <mutex>
#include <trtprune/error.hpp>
#include <unordered_map>

namespace trtprune::c_api {

namespace {

// Kinds in the low bits; the lowest is always 1, as it is of no address of an object.
constexpr unsigned kind_bits = 4;

/// The handles of the process.  The one object with state of the library: C has nowhere else to keep it.
struct Table {
    std::mutex mutex;
    std::unordered_map<std::uintptr_t, std::shared_ptr<void>> objects;
    std::uintptr_t next = 1;
};

Table& table() {
    // Never destroyed: a program may free handles while it ends.
    static Table* const shared = new Table;
    return *shared;
}

bool is_kind(std::uintptr_t number, std::uintptr_t kind) {
    return (number & ((std::uintptr_t{1} << kind_bits) - 1)) == ((kind << 1U) | 1U);
}

}  // namespace

std::uintptr_t add(std::uintptr_t kind, std::shared_ptr<void> object) {
    Table& all = table();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const std::uintptr_t number = (all.next << kind_bits) | (kind << 1U) | 1U;
    all.objects.emplace(number, std::move(object));
    ++all.next;
    return number;
}

std::shared_ptr<void> find(std::uintptr_t kind, std::uintptr_t number) {
    if (!is_kind(number, kind)) return nullptr;
    Table& all = table();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto entry = all.objects.find(number);
    return entry == all.objects.end() ? nullptr : entry->second;
}

std::shared_ptr<void> take(std::uintptr_t kind, std::uintptr_t number) {
    if (!is_kind(number, kind)) return nullptr;
    Table& all = table();
    // The caller destroys the object, outside of the lock: a model takes its time.
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto entry = all.objects.find(number);
    if (entry == all.objects.end()) return nullptr;
    std::shared_ptr<void> object = std::move(entry->second);
    all.objects.erase(entry);
    return object;
}

void refuse_handle(const void* handle, const char* noun) {
    const std::string name = noun;
    if (handle == nullptr) throw InputError(name + "=NULL");
    throw InputError(name + ": no such handle", "it was freed before, or is of another kind");
}

}  // namespace trtprune::c_api
