#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <trtprune/error.hpp>

#include "backend/tensorrt/library.hpp"

// The library of plugins/, which Python's plugins.py loads as well.
namespace trtprune::backend::tensorrt {

namespace {

constexpr const char* variable = "TRTPRUNE_PLUGIN_LIBRARY";
constexpr const char* library_name = "libtrtprune_plugins.so";
constexpr const char* plugin_namespace = "trtprune";
constexpr const char* build_hint = "cmake -S plugins -B build/plugins && cmake --build build/plugins";

using Plugins = std::map<std::string, std::string>;

bool is_known(nvinfer1::IPluginRegistry& registry, const std::string& name, const std::string& version) {
    return registry.getCreator(name.c_str(), version.c_str(), plugin_namespace) != nullptr;
}

std::string listed(const Plugins& plugins) {
    std::string text;
    for (const auto& [name, version] : plugins) text += (text.empty() ? "" : ", ") + name + " " + version;
    return text;
}

Plugins unknown(nvinfer1::IPluginRegistry& registry, const Plugins& plugins) {
    Plugins missing;
    for (const auto& [name, version] : plugins) {
        if (!is_known(registry, name, version)) missing.emplace(name, version);
    }
    return missing;
}

/// Why a file cannot be opened as a library, empty if it can: opening a truncated one can kill the process.
std::string incomplete(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    Elf64_Ehdr header{};
    file.read(reinterpret_cast<char*>(&header), sizeof header);
    if (!file || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_ident[EI_DATA] != ELFDATA2LSB) {
        return "not a shared library (64-bit ELF)";
    }
    file.seekg(0, std::ios::end);
    const auto size = static_cast<std::uint64_t>(file.tellg());
    std::uint64_t end = std::max(header.e_phoff + std::uint64_t{header.e_phentsize} * header.e_phnum,
                                 header.e_shoff + std::uint64_t{header.e_shentsize} * header.e_shnum);
    if (end <= size && header.e_phentsize == sizeof(Elf64_Phdr)) {
        file.seekg(static_cast<std::streamoff>(header.e_phoff));
        for (int i = 0; i < header.e_phnum; ++i) {
            Elf64_Phdr program{};
            file.read(reinterpret_cast<char*>(&program), sizeof program);
            if (program.p_filesz > size || program.p_offset > size) return "the file is cut off";
            end = std::max(end, program.p_offset + program.p_filesz);
        }
    }
    return end > size ? "the file is cut off" : "";
}

void register_library(const std::string& path) {
    const std::string why = incomplete(path);
    // RTLD_NODELETE: its creators stay in TensorRT's registry.
    void* handle = why.empty() ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) : nullptr;
    if (handle == nullptr) {
        throw BackendError("plugin library " + path + " does not load: " + (why.empty() ? dlerror() : why), build_hint);
    }
    using Text = const char* (*)();
    using Number = int (*)();
    auto version = reinterpret_cast<Text>(dlsym(handle, "trtprunePluginVersion"));
    auto tensorrt = reinterpret_cast<Number>(dlsym(handle, "trtprunePluginTensorRTVersion"));
    auto add = reinterpret_cast<Number>(dlsym(handle, "trtpruneRegisterPlugins"));
    if (version == nullptr || tensorrt == nullptr || add == nullptr) {
        throw BackendError(path + " is not trtprune's plugin library",
                           std::string(library_name) + " of: " + build_hint);
    }
    if (std::strcmp(version(), TRTPRUNE_VERSION) != 0) {
        throw BackendError(
            "plugin library " + path + " belongs to trtprune " + version() + ", this is " + TRTPRUNE_VERSION,
            std::string("rebuild it: ") + build_hint);
    }
    if (const int major = tensorrt() / 10000; major != NV_TENSORRT_MAJOR) {
        throw BackendError("plugin library " + path + " was compiled for TensorRT " + std::to_string(major) +
                               ", installed is TensorRT " + std::to_string(NV_TENSORRT_MAJOR),
                           std::string("rebuild it: ") + build_hint);
    }
    add();
}

}  // namespace

void load_plugins(Library& library, const Plugins& needed) {
    if (needed.empty()) return;
    nvinfer1::IPluginRegistry* registry = library.plugins();
    if (registry == nullptr) throw BackendError("TensorRT has no plugin registry");
    if (unknown(*registry, needed).empty()) return;
    const char* named = std::getenv(variable);
    if (named == nullptr || *named == '\0') {
        throw BackendError("the engines need the plugin " + listed(needed) + ", and no plugin library was found",
                           std::string(build_hint) + ", then set " + variable + " to " + library_name +
                               "; or build the engines without it");
    }
    if (!std::ifstream(named)) {
        throw BackendError(std::string(variable) + ": no file " + named, build_hint);
    }
    register_library(named);
    const Plugins other = unknown(*registry, needed);
    if (!other.empty()) {
        throw BackendError(
            "the engines need the plugin " + listed(other) + ", which the plugin library of this release does not have",
            "build the engines anew");
    }
}

}  // namespace trtprune::backend::tensorrt
