// How TensorRT comes to know the plugins.
//
// The library is linked against no TensorRT: it looks for the one that the process has loaded (full, lean or dispatch
// runtime of the major version it was compiled for) and registers itself there when it is opened, so that dlopen(),
// ctypes, `polygraphy --plugins` and `trtexec --staticPlugins` are enough, and one file serves all three runtimes.
// IPluginRegistry::loadLibrary() (`trtexec --dynamicPlugins`) calls getCreators() and registers by itself, but refuses
// what is registered already; getCreators() therefore takes the library's own registration back.
#include <dlfcn.h>

#include <cstdio>
#include <mutex>
#include <string>
#include <vector>

#include "common.hpp"

#ifndef TRTPRUNE_VERSION
#error "define TRTPRUNE_VERSION, the project's version as a string"
#endif
#define TRTPRUNE_API extern "C" __attribute__((visibility("default")))

namespace trtprune {
namespace {

using namespace nvinfer1;

/// Never destroyed, as TensorRT may come back at the end of the process; made when first used, because on_load() runs
/// before the initialisers of this file.
struct State {
    std::mutex mutex;
    ILoggerFinder* logger_finder = nullptr;
    std::vector<IPluginCreatorInterface*> creators{&topk_gather_creator(), &maxmin_select_creator()};
    std::vector<IPluginRegistry*> registered_in;
};
State& state() {
    static auto* state = new State;
    return *state;
}

/// The registries of the TensorRT libraries that the process has loaded already.
std::vector<IPluginRegistry*> loaded_registries() {
    std::vector<IPluginRegistry*> found;
    for (const char* name : {"libnvinfer.so.", "libnvinfer_lean.so.", "libnvinfer_dispatch.so."}) {
        const std::string soname = name + std::to_string(NV_TENSORRT_MAJOR);
        void* library = dlopen(soname.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (library == nullptr) continue;
        const auto get_registry = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(library, "getPluginRegistry"));
        if (IPluginRegistry* registry = get_registry != nullptr ? get_registry() : nullptr) found.push_back(registry);
        dlclose(library);  // was open before, and stays so
    }
    return found;
}

/// Takes back what register_everywhere() did, in the registries that are still loaded.
void deregister_everywhere() {
    for (IPluginRegistry* registry : loaded_registries()) {
        for (IPluginRegistry* ours : state().registered_in) {
            if (ours != registry) continue;
            for (IPluginCreatorInterface* creator : state().creators) registry->deregisterCreator(*creator);
        }
    }
    state().registered_in.clear();
}

/// Returns how many registries know the plugins, by whichever way.
int register_everywhere() {
    int knowing = 0;
    for (IPluginRegistry* registry : loaded_registries()) {
        if (registry->getCreator(topk_gather_creator().getPluginName(), kVersion, kNamespace) == nullptr) {
            for (IPluginCreatorInterface* creator : state().creators) registry->registerCreator(*creator, kNamespace);
            state().registered_in.push_back(registry);
        }
        ++knowing;
    }
    return knowing;
}

// There is no counterpart: the library is linked with -z nodelete, so that what is registered stays valid, and at the
// end of the process TensorRT may be gone before it.
__attribute__((constructor)) void on_load() {
    const std::lock_guard<std::mutex> lock(state().mutex);
    register_everywhere();
}

}  // namespace

void report_error(const char* plugin, const char* message) {
    const std::string text = std::string(kNamespace) + "::" + plugin + ": " + message;
    ILogger* logger = nullptr;
    {
        const std::lock_guard<std::mutex> lock(state().mutex);
        if (state().logger_finder != nullptr) logger = state().logger_finder->findLogger();
    }
    if (logger != nullptr) {
        logger->log(Severity::kERROR, text.c_str());
    } else {
        std::fprintf(stderr, "%s\n", text.c_str());
    }
}

}  // namespace trtprune

// -- what IPluginRegistry::loadLibrary() calls --------------------------------------------------------------------

TRTPRUNE_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    const std::lock_guard<std::mutex> lock(trtprune::state().mutex);
    trtprune::state().logger_finder = finder;
}

TRTPRUNE_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    const std::lock_guard<std::mutex> lock(trtprune::state().mutex);
    trtprune::deregister_everywhere();
    count = static_cast<int32_t>(trtprune::state().creators.size());
    return trtprune::state().creators.data();
}

// -- what trtprune calls ------------------------------------------------------------------------------------------

/// The release of trtprune that this library belongs to.
TRTPRUNE_API const char* trtprunePluginVersion() {
    return TRTPRUNE_VERSION;
}

/// The TensorRT whose headers it was compiled with, as 10000 * major + 100 * minor + patch.
TRTPRUNE_API int trtprunePluginTensorRTVersion() {
    return 10000 * NV_TENSORRT_MAJOR + 100 * NV_TENSORRT_MINOR + NV_TENSORRT_PATCH;
}

/// Registers the plugins where a TensorRT was loaded after this library; returns how many registries know them.
TRTPRUNE_API int trtpruneRegisterPlugins() {
    const std::lock_guard<std::mutex> lock(trtprune::state().mutex);
    return trtprune::register_everywhere();
}
