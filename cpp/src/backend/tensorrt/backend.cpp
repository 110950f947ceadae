#include "backend/tensorrt/backend.hpp"

#include <algorithm>
#include <list>
#include <map>
#include <string>
#include <trtprune/vlm.hpp>
#include <utility>

#include "backend/tensorrt/decode_graph.hpp"
#include "backend/tensorrt/loading.hpp"
#include "backend/tensorrt/session.hpp"
#include "backend/tensorrt/shapes.hpp"

namespace trtprune::backend::tensorrt {

namespace {

using engine_dir::ComponentInfo;
using engine_dir::EngineDir;

// Recorded steps that are kept, one for each cache in use: more would belong to conversations that have ended.
constexpr std::size_t most_steps = 4;

struct Settings {
    int device_id = 0;
    bool cuda_graph = true;
};

Settings read_options(const std::map<std::string, std::string>& options) {
    Settings settings;
    for (const auto& [name, value] : options) {
        if (name == "device_id") {
            const bool number = !value.empty() && value.size() <= 6 &&
                                std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; });
            if (!number) throw BackendError("--provider-option device_id=" + value + ": must be a number");
            settings.device_id = std::stoi(value);
        } else if (name == "cuda_graph") {
            if (value != "on" && value != "off") {
                throw BackendError("--provider-option cuda_graph=" + value + ": unknown", "on or off");
            }
            settings.cuda_graph = value == "on";
        } else {
            throw BackendError("--provider-option " + name + ": tensorrt engines have no such option",
                               "they have: device_id, cuda_graph");
        }
    }
    return settings;
}

std::int64_t file_size(const EngineDir& config, const ComponentInfo& component) {
    std::error_code error;
    const auto size = std::filesystem::file_size(std::filesystem::path(config.root) / *component.engine, error);
    return error ? 0 : static_cast<std::int64_t>(size);  // loading reports the fault
}

/// A step that is kept for the next answer over the same memory.
class SharedStep : public Step {
  public:
    explicit SharedStep(std::shared_ptr<DecodeStep> step) : step_(std::move(step)) {}
    Tensor run(const std::vector<std::int64_t>& token, const std::vector<std::int64_t>& position,
               const std::vector<std::int64_t>& write_index) override {
        return step_->run(token, position, write_index);
    }

  private:
    std::shared_ptr<DecodeStep> step_;
};

class TrtBackend : public Backend {
  public:
    TrtBackend(const EngineDir& config, const LoadOptions& options)
        : settings_(read_options(options.provider_options)),
          config_(config),
          library_(checked(config, options.library)) {
        check_version(config_, library_->version());
        driver_ = std::make_shared<Driver>(settings_.device_id);
        check_device(config_, *driver_);
        memory_ = std::make_unique<DeviceMemory>(driver_);
        workspace_ = std::make_unique<Workspace>(*memory_);
        for (const ComponentInfo& part : config_.components) unloaded_[part.name] = file_size(config_, part);
        check_room();
        load_plugins(*library_, config_.engines->plugins);
        runtime_ = library_->make_runtime();
        // A version-compatible engine carries the runtime it was built for, which is code.
        runtime_->setEngineHostCodeAllowed(config_.engines->version_compatible);
    }

    const std::string& name() const override { return name_; }
    Memory& memory() override { return *memory_; }

    std::unique_ptr<Session> session(const ComponentInfo& component, const std::filesystem::path& root) override {
        driver_->enter();
        auto loaded = load_engine(*runtime_, root / component.engine.value());
        if (config_.engines->weight_streaming) {
            loaded->setWeightStreamingBudgetV2(loaded->getWeightStreamingAutomaticBudget());
        }
        auto engine = std::make_shared<Engine>(std::move(loaded), component.name, *memory_, *workspace_);
        unloaded_.erase(component.name);
        check_room();
        return std::make_unique<TrtSession>(component, std::move(engine));
    }

    std::unique_ptr<Step> step(Session& embed, Session& decoder, Cache& cache) override {
        auto& first = dynamic_cast<TrtSession&>(embed);
        auto& second = dynamic_cast<TrtSession&>(decoder);
        const auto& own = dynamic_cast<const TrtCache&>(cache);
        if (buffers_ == nullptr) buffers_ = std::make_unique<StepBuffers>(*memory_, first, second);
        const Key key{own.key(), {&embed, &decoder}};
        auto kept = std::find_if(steps_.begin(), steps_.end(), [&](const auto& entry) { return entry.first == key; });
        if (kept == steps_.end()) {
            auto made = std::make_shared<DecodeStep>(first, second, own, *buffers_, settings_.cuda_graph);
            steps_.emplace_back(key, std::move(made));
        } else {
            steps_.splice(steps_.end(), steps_, kept);
        }
        if (steps_.size() > most_steps) steps_.pop_front();
        return std::make_unique<SharedStep>(steps_.back().second);
    }

  private:
    using Key = std::pair<std::pair<void*, std::int64_t>, std::pair<Session*, Session*>>;

    static std::unique_ptr<Library> checked(const EngineDir& config, const std::string& path) {
        engine_info(config);
        return std::make_unique<Library>(path);
    }

    void check_room() {
        std::int64_t engines = 0;
        for (const auto& [name, size] : unloaded_) engines += size;
        if (config_.engines->weight_streaming) engines = 0;
        check_memory(config_, {engines, workspace_->nbytes(), cache_bytes(config_)}, driver_->memory_info().first);
    }

    // In this order, so that what stands on something else is freed first.
    std::string name_ = "tensorrt";
    Settings settings_;
    EngineDir config_;
    std::unique_ptr<Library> library_;
    std::shared_ptr<Driver> driver_;
    std::unique_ptr<DeviceMemory> memory_;
    std::unique_ptr<Workspace> workspace_;
    std::map<std::string, std::int64_t> unloaded_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<StepBuffers> buffers_;
    std::list<std::pair<Key, std::shared_ptr<DecodeStep>>> steps_;
};

}  // namespace

std::unique_ptr<Backend> open(const EngineDir& config, const LoadOptions& options) {
    return std::make_unique<TrtBackend>(config, options);
}

}  // namespace trtprune::backend::tensorrt
