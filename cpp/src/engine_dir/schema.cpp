#include "engine_dir/schema.hpp"

#include <algorithm>
#include <set>
#include <string_view>
#include <trtprune/error.hpp>

#include "engine_dir/paths.hpp"

namespace trtprune::engine_dir {

namespace {

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

}  // namespace

const ComponentInfo& EngineDir::component(const std::string& name) const {
    std::vector<std::string> names;
    for (const ComponentInfo& other : components) {
        if (other.name == name) return other;
        names.push_back(other.name);
    }
    throw EngineDirError(root + ": no component '" + name + "'", "it has: " + joined(names));
}

std::vector<const ComponentInfo*> EngineDir::by_role(const std::string& role) const {
    const std::set<std::string_view> chained(chain.begin(), chain.end());
    std::vector<const ComponentInfo*> found;
    for (const ComponentInfo& other : components) {
        if (other.role == role && chained.count(other.name) > 0) found.push_back(&other);
    }
    std::stable_sort(found.begin(), found.end(), [](const ComponentInfo* a, const ComponentInfo* b) {
        return a->segment.value_or(0) < b->segment.value_or(0);
    });
    return found;
}

const ComponentInfo* EngineDir::find(const std::string& role, std::optional<std::int64_t> segment) const {
    for (const ComponentInfo* other : by_role(role)) {
        if (other->segment == segment) return other;
    }
    return nullptr;
}

const ComponentInfo& EngineDir::part(const std::string& role, std::optional<std::int64_t> segment) const {
    const ComponentInfo* found = find(role, segment);
    if (found != nullptr) return *found;
    throw EngineDirError(root + ": no " + Part{role, segment}.name() + " in the chain",
                         "its chain is " + joined(chain) + "; build the directory again");
}

std::vector<const ComponentInfo*> EngineDir::segments() const {
    std::vector<const ComponentInfo*> found = by_role(roles::decoder);
    found.erase(std::remove_if(found.begin(), found.end(), [](const ComponentInfo* c) { return !c->segment; }),
                found.end());
    return found;
}

std::string EngineDir::path(const std::string& relative) const {
    return inside(root, relative);
}

}  // namespace trtprune::engine_dir
