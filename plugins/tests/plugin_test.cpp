// Takes the plugin library through TensorRT's registry without a GPU and prints what it sees, one `name=value` a line;
// tests/test_plugins_library.py knows what it should see.
//
//     plugin_test LIBRARY dlopen | loadLibrary | both
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

void print(const std::string& name, const std::string& value) {
    std::printf("%s=%s\n", name.c_str(), value.c_str());
}
void print(const std::string& name, long long value) {
    print(name, std::to_string(value));
}

/// A dimension by name, as the builder would hand it to a plugin.
class Dimension final : public IDimensionExpr, public apiv::VDimensionExpr {
  public:
    explicit Dimension(std::string name) : name_(std::move(name)) { mImpl = this; }
    ~Dimension() noexcept override = default;
    bool isConstant() const override { return false; }
    int64_t getConstantValue() const override { return -1; }
    bool isSizeTensor() const override { return false; }
    const std::string& name() const { return name_; }

  private:
    std::string name_;
};

/// Plugins that compute no dimension need no working builder; one that does is seen in the log.
class Builder final : public IExprBuilder, public apiv::VExprBuilder {
  public:
    Builder() { mImpl = this; }
    ~Builder() noexcept override = default;
    const IDimensionExpr* constant(int64_t value) override { return made("constant " + std::to_string(value)); }
    const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) override {
        return made("operation");
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
        return made("size tensor");
    }

  private:
    const IDimensionExpr* made(const std::string& what) {
        print("builder", what);
        dimensions_.emplace_back(what);
        return &dimensions_.back();
    }
    std::deque<Dimension> dimensions_;
};

std::deque<Dimension> dimensions;

DimsExprs exprs(const std::vector<std::string>& names) {
    DimsExprs dims{};
    for (const std::string& name : names) {
        dimensions.emplace_back(name);
        dims.d[dims.nbDims++] = &dimensions.back();
    }
    return dims;
}

std::string text(const DimsExprs& dims) {
    std::string all;
    for (int i = 0; i < dims.nbDims; ++i) all += (i ? " " : "") + static_cast<const Dimension*>(dims.d[i])->name();
    return all;
}

struct Type {
    const char* name;
    DataType type;
};
constexpr Type kTypes[] = {{"float32", DataType::kFLOAT}, {"float16", DataType::kHALF}, {"bfloat16", DataType::kBF16},
                           {"int64", DataType::kINT64},   {"int32", DataType::kINT32},  {"int8", DataType::kINT8},
                           {"uint8", DataType::kUINT8},   {"bool", DataType::kBOOL},    {"float8", DataType::kFP8},
                           {"int4", DataType::kINT4}};
constexpr TensorFormat kFormats[] = {TensorFormat::kLINEAR, TensorFormat::kCHW2, TensorFormat::kHWC8,
                                     TensorFormat::kCHW32, TensorFormat::kHWC};

DynamicPluginTensorDesc desc(DataType type, const std::vector<int64_t>& dims = {},
                             TensorFormat format = TensorFormat::kLINEAR) {
    DynamicPluginTensorDesc tensor{};
    tensor.desc.type = type;
    tensor.desc.format = format;
    for (int64_t d : dims) {
        tensor.desc.dims.d[tensor.desc.dims.nbDims++] = d;
    }
    tensor.min = tensor.opt = tensor.max = tensor.desc.dims;
    return tensor;
}

/// All type combinations that the plugin takes, found by asking for one position after the other, as TensorRT does.
void combinations(const std::string& name, IPluginV3OneBuild& build, int inputs, int outputs,
                  std::vector<DynamicPluginTensorDesc>& chosen, std::string taken) {
    if (static_cast<int>(chosen.size()) == inputs + outputs) {
        print(name + ".types", taken);
        return;
    }
    const auto position = static_cast<int32_t>(chosen.size());
    for (const Type& type : kTypes) {
        for (TensorFormat format : kFormats) {
            chosen.push_back(desc(type.type, {}, format));
            if (build.supportsFormatCombination(position, chosen.data(), inputs, outputs)) {
                const std::string suffix = format == TensorFormat::kLINEAR ? "" : ":not-linear";
                combinations(name, build, inputs, outputs, chosen, taken + (position ? " " : "") + type.name + suffix);
            }
            chosen.pop_back();
        }
    }
}

template <class Capability> Capability* capability(IPluginV3& plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}
IPluginV3OneBuild& build_of(IPluginV3& plugin) {
    return *capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime& runtime_of(IPluginV3& plugin) {
    return *capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

std::string text(const PluginFieldCollection& fields) {
    std::string all;
    for (int i = 0; i < fields.nbFields; ++i) {
        const PluginField& field = fields.fields[i];
        const auto length = static_cast<size_t>(field.length);
        all += (i ? " " : "") + std::string(field.name) + ":" + std::to_string(static_cast<int>(field.type));
        if (field.data != nullptr) all += ":" + std::string(static_cast<const char*>(field.data), length);
    }
    return all;
}

std::unique_ptr<IPluginV3> create(IPluginCreatorV3One& creator, const PluginFieldCollection& fields,
                                  TensorRTPhase phase = TensorRTPhase::kBUILD) {
    return std::unique_ptr<IPluginV3>(creator.createPlugin("layer", &fields, phase));
}

/// What holds for any plugin: identity, capabilities, copies, and a round trip through its serialised fields.
void life_cycle(const std::string& name, IPluginCreatorV3One& creator, const PluginFieldCollection& attributes) {
    auto plugin = create(creator, attributes);
    print(name + ".created", plugin != nullptr);
    if (!plugin) return;
    const auto* core = capability<IPluginV3OneCore>(*plugin, PluginCapabilityType::kCORE);
    print(name + ".identity",
          std::string(core->getPluginNamespace()) + "::" + core->getPluginName() + " " + core->getPluginVersion());
    auto& build = build_of(*plugin);
    auto& runtime = runtime_of(*plugin);
    print(name + ".interfaces", std::string(core->getInterfaceInfo().kind) + " " + build.getInterfaceInfo().kind + " " +
                                    runtime.getInterfaceInfo().kind);
    print(name + ".outputs", build.getNbOutputs());
    print(name + ".attributes", text(*creator.getFieldNames()));
    const std::string serialized = text(*runtime.getFieldsToSerialize());
    print(name + ".serialized", serialized);

    std::unique_ptr<IPluginV3> clone(plugin->clone());
    std::unique_ptr<IPluginV3> attached(runtime.attachToContext(nullptr));
    print(name + ".copies", clone && attached && clone != plugin && attached != plugin);
    plugin.reset();  // copies stand on their own
    auto again = create(creator, *runtime_of(*clone).getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
    clone.reset();
    print(name + ".recreated", again && text(*runtime_of(*again).getFieldsToSerialize()) == serialized &&
                                   text(*runtime_of(*attached).getFieldsToSerialize()) == serialized);
}

void shapes(const std::string& name, IPluginV3& plugin, const std::vector<DimsExprs>& inputs,
            const std::vector<DimsExprs>& shape_inputs) {
    Builder builder;
    auto& build = build_of(plugin);
    std::vector<DimsExprs> outputs(static_cast<size_t>(build.getNbOutputs()));
    const int32_t status =
        build.getOutputShapes(inputs.data(), static_cast<int32_t>(inputs.size()), shape_inputs.data(),
                              static_cast<int32_t>(shape_inputs.size()), outputs.data(), build.getNbOutputs(), builder);
    std::string all;
    for (const DimsExprs& dims : outputs) all += (all.empty() ? "" : ", ") + text(dims);
    print(name, status == 0 ? all : "refused");
}

std::string status(int32_t code) {
    return code == 0 ? "ok" : "refused";
}

void topk_gather(IPluginCreatorV3One& creator) {
    const std::string name = "TopKGather";
    life_cycle(name, creator, {});
    auto plugin = create(creator, {});
    auto& build = build_of(*plugin);
    auto& runtime = runtime_of(*plugin);

    std::vector<DynamicPluginTensorDesc> chosen;
    combinations(name, build, 2, 2, chosen, "");
    shapes(name + ".shapes", *plugin, {exprs({"B", "N"}), exprs({"B", "N", "D"})}, {exprs({"keep"})});
    shapes(name + ".shapes without keep", *plugin, {exprs({"B", "N"}), exprs({"B", "N", "D"})}, {});
    shapes(name + ".shapes of keep as tensor", *plugin, {exprs({"B", "N"}), exprs({"B", "N", "D"}), exprs({"1"})}, {});
    shapes(name + ".shapes of wrong rank", *plugin, {exprs({"B", "N"}), exprs({"N", "D"})}, {exprs({"keep"})});
    for (const Type& scores : kTypes) {
        for (const Type& features : kTypes) {
            const DataType in[] = {scores.type, features.type};
            DataType out[2];
            if (build.getOutputDataTypes(out, 2, in, 2) != 0) continue;
            for (const Type& first : kTypes) {
                for (const Type& second : kTypes) {
                    if (first.type == out[0] && second.type == out[1])
                        print(name + ".dtypes",
                              std::string(scores.name) + " " + features.name + " " + first.name + " " + second.name);
                }
            }
        }
    }

    const auto sizes = [&](const std::string& what, int64_t tokens, int64_t keep, std::vector<int64_t> features) {
        DynamicPluginTensorDesc in[] = {desc(DataType::kFLOAT, {1, tokens}), desc(DataType::kHALF, features)};
        DynamicPluginTensorDesc out[] = {desc(DataType::kHALF, {1, keep, 64}), desc(DataType::kINT64, {1, keep})};
        PluginTensorDesc fixed_in[] = {in[0].desc, in[1].desc}, fixed_out[] = {out[0].desc, out[1].desc};
        print(name + ".configure " + what, status(build.configurePlugin(in, 2, out, 2)));
        print(name + ".shape change " + what, status(runtime.onShapeChange(fixed_in, 2, fixed_out, 2)));
        print(name + ".workspace " + what, static_cast<long long>(build.getWorkspaceSize(in, 2, out, 2)));
    };
    sizes("576 to 192", 576, 192, {1, 576, 64});
    sizes("32768 to 32768", 32768, 32768, {1, 32768, 64});
    sizes("32769 to 64", 32769, 64, {1, 32769, 64});
    sizes("64 to 65", 64, 65, {1, 64, 64});
    sizes("of wrong rank", 64, 32, {64, 64});
    print(name + ".timing cache", build.getTimingCacheID());

    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        // Nothing can be launched: that must come back as an error.  The pointers are never followed.
        PluginTensorDesc in[] = {desc(DataType::kFLOAT, {1, 8}).desc, desc(DataType::kFLOAT, {1, 8, 4}).desc};
        PluginTensorDesc out[] = {desc(DataType::kFLOAT, {1, 2, 4}).desc, desc(DataType::kINT64, {1, 2}).desc};
        float memory[64] = {};
        const void* inputs[] = {memory, memory};
        void* outputs[] = {memory, memory};
        print(name + ".enqueue without a GPU", status(runtime.enqueue(in, out, inputs, outputs, nullptr, nullptr)));
    }
}

void maxmin_select(IPluginCreatorV3One& creator) {
    const std::string name = "MaxMinSelect";
    life_cycle(name, creator, {});
    const auto with_mode = [](const char* mode, PluginFieldType type = PluginFieldType::kCHAR) {
        return PluginField("mode", mode, type, static_cast<int32_t>(std::strlen(mode)));
    };
    PluginField meansim[] = {PluginField("other", "x", PluginFieldType::kCHAR, 1), with_mode("meansim")};
    life_cycle(name + " meansim", creator, {2, meansim});
    PluginField wrong[] = {with_mode("median")};
    print(name + ".unknown mode", create(creator, {1, wrong}) ? "created" : "refused");
    PluginField number[] = {with_mode("maxmin", PluginFieldType::kINT32)};
    print(name + ".mode of wrong type", create(creator, {1, number}) ? "created" : "refused");

    auto plugin = create(creator, {});
    auto& build = build_of(*plugin);
    std::vector<DynamicPluginTensorDesc> chosen;
    combinations(name, build, 3, 1, chosen, "");
    shapes(name + ".shapes", *plugin, {exprs({"B", "N", "N"}), exprs({"B", "N"}), exprs({"1"})}, {});
    shapes(name + ".shapes of two inputs", *plugin, {exprs({"B", "N", "N"}), exprs({"B", "N"})}, {});
    for (int64_t tokens : {8765, 16384, 16385}) {
        DynamicPluginTensorDesc in[] = {desc(DataType::kFLOAT, {1, tokens, tokens}),
                                        desc(DataType::kFLOAT, {1, tokens}), desc(DataType::kINT64, {1})};
        DynamicPluginTensorDesc out[] = {desc(DataType::kFLOAT, {1, tokens})};
        print(name + ".configure " + std::to_string(tokens), status(build.configurePlugin(in, 3, out, 1)));
    }
}

bool known(const char* name) {
    return getPluginRegistry()->getCreator(name, "1", "trtprune") != nullptr;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: plugin_test LIBRARY dlopen|loadLibrary|both\n");
        return 2;
    }
    const std::string path = argv[1], way = argv[2];
    IPluginRegistry* registry = getPluginRegistry();
    print("TensorRT", getInferLibVersion());
    print("known before", known("TopKGather") || known("MaxMinSelect"));
    if (way != "loadLibrary") {
        if (dlopen(path.c_str(), RTLD_NOW) == nullptr) {
            print("dlopen", dlerror());
            return 1;
        }
        print("known after dlopen", known("TopKGather") && known("MaxMinSelect"));
    }
    if (way != "dlopen") {
        IPluginRegistry::PluginLibraryHandle handle = registry->loadLibrary(path.c_str());
        print("loadLibrary", handle != nullptr ? "ok" : "refused");
        print("known after loadLibrary", known("TopKGather") && known("MaxMinSelect"));
        if (handle != nullptr) registry->deregisterLibrary(handle);
        print("known after deregisterLibrary", known("TopKGather") || known("MaxMinSelect"));
        return 0;
    }

    print("known by another name", registry->getCreator("TopKGather", "1", "") != nullptr);
    for (const char* symbol : {"trtprunePluginVersion", "trtprunePluginTensorRTVersion", "trtpruneRegisterPlugins"}) {
        void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
        print(std::string("exports ") + symbol, dlsym(library, symbol) != nullptr);
    }
    topk_gather(*static_cast<IPluginCreatorV3One*>(registry->getCreator("TopKGather", "1", "trtprune")));
    maxmin_select(*static_cast<IPluginCreatorV3One*>(registry->getCreator("MaxMinSelect", "1", "trtprune")));
    return 0;
}
