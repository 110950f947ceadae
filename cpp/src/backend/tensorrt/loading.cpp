#include "backend/tensorrt/loading.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <trtprune/error.hpp>
#include <vector>

namespace trtprune::backend::tensorrt {

namespace {

using engine_dir::EngineDir;

// Further memory of the driver, of kernels that are compiled at run time, and of activations outside of engines.
constexpr std::int64_t reserve_bytes = std::int64_t{256} << 20;

/// The numbers of a text: 10, 15, 1 of `10.15.1`.
std::vector<std::int64_t> numbers(const std::string& text) {
    std::vector<std::int64_t> all;
    bool inside = false;
    for (const char c : text) {
        const bool digit = c >= '0' && c <= '9';
        if (digit && !inside) all.push_back(0);
        if (digit && all.back() < 1'000'000'000) all.back() = all.back() * 10 + (c - '0');
        inside = digit;
    }
    return all;
}

std::string joined(const std::vector<std::string>& parts, const char* between) {
    std::string text;
    for (const std::string& part : parts) text += (text.empty() ? "" : between) + part;
    return text;
}

std::string gigabytes(std::int64_t size) {
    char text[64];
    std::snprintf(text, sizeof text, "%.2f GB", static_cast<double>(size) / 1e9);
    return text;
}

/// Flags of a build that would fit into `free` bytes, the smallest change first.
std::vector<std::string> fitting(const EngineDir& config, const Needs& needs, std::int64_t free) {
    std::vector<std::string> ways;
    const std::int64_t rest = free - needs.engines - needs.workspace - reserve_bytes;
    // Rounded down, also below zero, as Python's integer division is.
    const auto floor = [](std::int64_t a, std::int64_t b) { return a / b - (a % b < 0 ? 1 : 0); };
    const std::int64_t per_token = std::max<std::int64_t>(config.kv.bytes_per_token, 1);
    const std::int64_t capacity = floor(floor(rest, per_token), 128) * 128;
    const std::int64_t text = config.engines ? config.engines->max_input_len : 0;
    const std::int64_t images = config.engines ? std::max<std::int64_t>(config.engines->max_images, 1) : 1;
    const auto [low, high] = config.pruning.keep_range;
    // Room for a short answer behind the longest prompt.
    if (capacity >= text + images * high + 64) ways.push_back("--max-seq-len " + std::to_string(capacity));
    const std::int64_t keep = floor(capacity - text - 64, images);
    if (low <= keep && keep < high) {
        ways.push_back("--keep-range " + std::to_string(low) + ":" + std::to_string(keep) + " --max-seq-len " +
                       std::to_string(capacity));
    }
    if (config.dtype == "float32" && needs.total() / 2 <= free) ways.emplace_back("--dtype float16");
    const bool plain = !config.weight_dtype && config.built_with.count("quantization") == 0;
    if (config.dtype != "float32" && plain) {
        const std::pair<const char*, double> smaller[] = {{"int8", 0.55}, {"int4", 0.32}};
        for (const auto& [dtype, ratio] : smaller) {
            const double total = static_cast<double>(needs.total());
            if (total - (1 - ratio) * static_cast<double>(needs.engines) <= static_cast<double>(free)) {
                ways.push_back(std::string("--weight-dtype ") + dtype);
                break;
            }
        }
    }
    return ways;
}

/// A file in memory.
class Mapping {
  public:
    explicit Mapping(const std::filesystem::path& path) {
        const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (file < 0) fail(path, std::strerror(errno));
        struct stat status {};
        if (fstat(file, &status) != 0 || status.st_size <= 0) {
            close(file);
            fail(path, "the file is empty");
        }
        size_ = static_cast<std::size_t>(status.st_size);
        address_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        const int error = errno;
        close(file);
        if (address_ == MAP_FAILED) fail(path, std::strerror(error));
    }
    ~Mapping() { munmap(address_, size_); }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    const void* address() const noexcept { return address_; }
    std::size_t size() const noexcept { return size_; }

  private:
    [[noreturn]] static void fail(const std::filesystem::path& path, const std::string& why) {
        throw EngineDirError(path.string() + ": cannot be read: " + why, "build it again with --force");
    }

    void* address_;
    std::size_t size_;
};

}  // namespace

const engine_dir::EngineInfo& engine_info(const EngineDir& config) {
    const bool complete = std::all_of(config.components.begin(), config.components.end(),
                                      [](const engine_dir::ComponentInfo& part) { return part.engine.has_value(); });
    if (!config.engines || !complete) {
        throw BackendError(
            config.root + ": exported for " + config.backend + ", without engines",
            "trtprune build --backend " + config.backend + " makes them; --provider cpu runs the graphs");
    }
    if (const auto cache = config.lowering.find("cache");
        cache != config.lowering.end() && cache->second == "primitives") {
        // Only the KV-cache layer may write memory that another layer reads in the same run.
        throw BackendError(config.root + ": built with --lowering cache=primitives, which engines cannot do in place",
                           "build it again without");
    }
    return *config.engines;
}

void check_version(const EngineDir& config, const std::string& installed) {
    const engine_dir::EngineInfo& info = *config.engines;
    if (info.version == installed) return;
    if (info.version_compatible && numbers(installed) > numbers(info.version)) return;
    throw BackendError(config.root + ": the engines were built with " + config.backend + " " + info.version + "; " +
                           installed + " is installed",
                       "install TensorRT " + info.version + ", or build it again with --version-compatible");
}

void check_device(const EngineDir& config, const Driver& driver) {
    const engine_dir::EngineInfo& info = *config.engines;
    const auto targets = [&](const std::string& name) {
        return std::find(info.targets.begin(), info.targets.end(), name) != info.targets.end();
    };
    // current: the GPU of the build, which is not recorded
    if (targets(driver.sm()) || targets("current")) return;
    if (info.hardware_compatibility == "ampere_plus" && driver.capability() >= std::pair<int, int>(8, 0)) return;
    throw BackendError(config.root + ": the engines are for " + joined(info.targets, ", ") + "; this GPU (" +
                           driver.device_name() + ") is " + driver.sm(),
                       "build it again on this machine, or with --hardware-compatibility-level ampere_plus");
}

std::int64_t Needs::total() const {
    return engines + workspace + cache_row + reserve_bytes;
}

void check_memory(const EngineDir& config, const Needs& needs, std::int64_t free) {
    if (needs.total() <= free) return;
    const std::vector<std::string> ways = fitting(config, needs, free);
    throw BackendError(
        config.root + ": needs " + gigabytes(needs.total()) + " of GPU memory (engines " + gigabytes(needs.engines) +
            ", KV cache " + gigabytes(needs.cache_row) + " a row, workspace " + gigabytes(needs.workspace) + "); " +
            gigabytes(free) + " are free",
        ways.empty() ? "a GPU with more memory, or --weight-streaming" : "build with " + joined(ways, " or "));
}

std::unique_ptr<nvinfer1::ICudaEngine> load_engine(nvinfer1::IRuntime& runtime, const std::filesystem::path& path) {
    const Mapping file(path);
    const MessageRecord record;
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime.deserializeCudaEngine(file.address(), file.size()));
    if (engine == nullptr) {
        throw BackendError(path.string() + ": tensorrt cannot load it: " + record.why(),
                           "if the file is whole (trtprune inspect), build it again on this machine");
    }
    return engine;
}

}  // namespace trtprune::backend::tensorrt
