// The plugins' own enqueue(), created through the registry of a TensorRT runtime: proof and times as JSON.  The lean
// runtime is enough, so that the plugins can be proven where there is a GPU but no full TensorRT.
//
//     plugin_harness LIBRARY [--cases N] [--max-tokens N] [--seed N] [--no-time]
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <memory>

#include "harness.hpp"

namespace {

using namespace nvinfer1;
using namespace trtprune::harness;

PluginTensorDesc desc(DataType type, std::initializer_list<int64_t> dims) {
    PluginTensorDesc tensor{};
    tensor.type = type;
    tensor.format = TensorFormat::kLINEAR;
    tensor.scale = -1.0f;
    for (int64_t d : dims) tensor.dims.d[tensor.dims.nbDims++] = d;
    return tensor;
}

DataType data_type(int dtype) {
    constexpr DataType kTypes[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
    return kTypes[dtype];
}

/// A plugin as an execution context holds it.
class Layer {
  public:
    Layer(const char* name, PluginFieldCollection fields) {
        auto* creator = static_cast<IPluginCreatorV3One*>(getPluginRegistry()->getCreator(name, "1", "trtprune"));
        if (creator == nullptr) throw std::runtime_error(std::string(name) + " is not registered");
        const std::unique_ptr<IPluginV3> plugin(creator->createPlugin("layer", &fields, TensorRTPhase::kRUNTIME));
        if (!plugin) throw std::runtime_error(std::string(name) + " cannot be created");
        attached_.reset(runtime(*plugin).attachToContext(nullptr));
    }
    int enqueue(const std::vector<PluginTensorDesc>& in, const std::vector<PluginTensorDesc>& out,
                std::initializer_list<const void*> inputs, std::initializer_list<void*> outputs, cudaStream_t stream) {
        IPluginV3OneRuntime& layer = runtime(*attached_);
        const int error = layer.onShapeChange(in.data(), static_cast<int32_t>(in.size()), out.data(),
                                              static_cast<int32_t>(out.size()));
        if (error != 0) return error;
        return layer.enqueue(in.data(), out.data(), inputs.begin(), outputs.begin(), nullptr, stream);
    }

  private:
    static IPluginV3OneRuntime& runtime(IPluginV3& plugin) {
        return *static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    }
    std::unique_ptr<IPluginV3> attached_;
};

int prove(const char* library, const Options& options) {
    if (dlopen(library, RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
    Layer topk_layer("TopKGather", {});
    const PluginField fields[] = {{"mode", "maxmin", PluginFieldType::kCHAR, 6},
                                  {"mode", "meansim", PluginFieldType::kCHAR, 7}};
    Layer maxmin_layers[] = {Layer("MaxMinSelect", {1, &fields[0]}), Layer("MaxMinSelect", {1, &fields[1]})};

    const auto topk = [&](const TopKCase& c, const void* scores, const void* features, void* kept, int64_t* indices,
                          cudaStream_t stream) {
        const DataType type = data_type(c.features_dtype);
        return topk_layer.enqueue(
            {desc(data_type(c.scores_dtype), {c.batch, c.tokens}), desc(type, {c.batch, c.tokens, c.width})},
            {desc(type, {c.batch, c.keep, c.width}), desc(DataType::kINT64, {c.batch, c.keep})}, {scores, features},
            {kept, indices}, stream);
    };
    const auto maxmin = [&](const MaxMinCase& c, const float* similarity, const float* close, float* close_out,
                            cudaStream_t stream) {
        const Buffer steps(&c.steps, sizeof(c.steps), 0);
        const int error = maxmin_layers[c.mode].enqueue(
            {desc(DataType::kFLOAT, {c.batch, c.tokens, c.tokens}), desc(DataType::kFLOAT, {c.batch, c.tokens}),
             desc(DataType::kINT64, {1})},
            {desc(DataType::kFLOAT, {c.batch, c.tokens})}, {similarity, close, steps.get()}, {close_out}, stream);
        check(cudaStreamSynchronize(stream), "MaxMinSelect");  // before `steps` goes
        return error;
    };
    return run("plugins in TensorRT " + std::to_string(getInferLibVersion()), topk, maxmin, options);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: plugin_harness LIBRARY [--cases N] [--max-tokens N] [--seed N] [--no-time]\n");
        return 2;
    }
    const Options options = read_options(argc, argv, 2);
    require_gpu();
    try {
        return prove(argv[1], options);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
