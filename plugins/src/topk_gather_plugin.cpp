// TopKGather for TensorRT.
//
//   inputs        scores [B, N], features [B, N, D]: float32, float16 or bfloat16 each
//   shape input   keep int64 or int32 [1] (node attribute tensorrt_plugin_shape_input_indices = [2])
//   outputs       kept [B, keep, D] of features' type, indices int64 [B, keep]
#include "common.hpp"
#include "launch.hpp"

namespace trtprune {
namespace {

using namespace nvinfer1;

int to_dtype(DataType type) {
    switch (type) {
        case DataType::kFLOAT:
            return TRTPRUNE_FLOAT32;
        case DataType::kHALF:
            return TRTPRUNE_FLOAT16;
        case DataType::kBF16:
            return TRTPRUNE_BFLOAT16;
        default:
            return -1;
    }
}

class TopKGather final : public Plugin<TopKGather> {
  public:
    static constexpr char kName[] = "TopKGather";

    /// The op has no attributes, so there is nothing to serialise either.
    static std::vector<PluginField> fields() { return {}; }
    static TopKGather* from_fields(const PluginFieldCollection*) { return new TopKGather; }
    const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &serialized_; }

    int32_t getNbOutputs() const noexcept override { return 2; }

    int32_t getOutputDataTypes(DataType* types, int32_t nbOutputs, const DataType* inputTypes,
                               int32_t nbInputs) const noexcept override {
        if (nbInputs != kInputs || nbOutputs != kOutputs) return refuse("wrong number of inputs or outputs");
        if (!is_float(inputTypes[0]) || !is_float(inputTypes[1])) {
            return refuse("scores and features must be float32, float16 or bfloat16");
        }
        types[0] = inputTypes[1];
        types[1] = DataType::kINT64;
        return 0;
    }

    int32_t getOutputShapes(const DimsExprs* inputs, int32_t nbInputs, const DimsExprs* shapeInputs,
                            int32_t nbShapeInputs, DimsExprs* outputs, int32_t nbOutputs,
                            IExprBuilder&) noexcept override {
        if (nbInputs != kInputs || nbShapeInputs != 1 || nbOutputs != kOutputs) {
            return refuse("expected the inputs scores and features and the shape input keep");
        }
        if (inputs[0].nbDims != 2 || inputs[1].nbDims != 3 || shapeInputs[0].nbDims != 1) {
            return refuse("expected scores [B, N], features [B, N, D] and keep [1]");
        }
        // A shape input's "dimensions" are its values.
        const IDimensionExpr* keep = shapeInputs[0].d[0];
        outputs[0].nbDims = 3;
        outputs[0].d[0] = inputs[1].d[0];
        outputs[0].d[1] = keep;
        outputs[0].d[2] = inputs[1].d[2];
        outputs[1].nbDims = 2;
        outputs[1].d[0] = inputs[1].d[0];
        outputs[1].d[1] = keep;
        return 0;
    }

    bool supportsFormatCombination(int32_t pos, const DynamicPluginTensorDesc* inOut, int32_t nbInputs,
                                   int32_t nbOutputs) noexcept override {
        if (nbInputs != kInputs || nbOutputs != kOutputs || pos < 0 || pos >= kInputs + kOutputs) return false;
        const PluginTensorDesc& tensor = inOut[pos].desc;
        switch (pos) {
            case 0:
            case 1:
                return is_float(tensor.type) && is_linear(tensor, tensor.type);
            case 2:
                return is_linear(tensor, inOut[1].desc.type);
            default:
                return is_linear(tensor, DataType::kINT64);
        }
    }

    int32_t configurePlugin(const DynamicPluginTensorDesc* in, int32_t nbInputs, const DynamicPluginTensorDesc* out,
                            int32_t nbOutputs) noexcept override {
        if (nbInputs != kInputs || nbOutputs != kOutputs) return refuse("wrong number of inputs or outputs");
        return check(in[0].max, in[1].max, out[0].max);
    }

    int32_t onShapeChange(const PluginTensorDesc* in, int32_t nbInputs, const PluginTensorDesc* out,
                          int32_t nbOutputs) noexcept override {
        if (nbInputs != kInputs || nbOutputs != kOutputs) return refuse("wrong number of inputs or outputs");
        return check(in[0].dims, in[1].dims, out[0].dims);
    }

    size_t getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t nbInputs, const DynamicPluginTensorDesc* out,
                            int32_t nbOutputs) const noexcept override {
        if (nbInputs != kInputs || nbOutputs != kOutputs) return 0;
        return trtprune_topk_gather_workspace(in[0].max.d[0], in[0].max.d[1], out[0].max.d[1]);
    }

    const char* getTimingCacheID() noexcept override { return kName; }

    int32_t enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        const Dims& features = in[1].dims;
        const int64_t keep = out[0].dims.d[1];
        const size_t bytes = trtprune_topk_gather_workspace(features.d[0], features.d[1], keep);
        const int error = trtprune_topk_gather(inputs[0], to_dtype(in[0].type), inputs[1], to_dtype(in[1].type),
                                               features.d[0], features.d[1], features.d[2], keep, outputs[0],
                                               static_cast<int64_t*>(outputs[1]), workspace, bytes, stream);
        return error == 0 ? 0 : refuse(trtprune_error_string(error));
    }

  private:
    static constexpr int32_t kInputs = 2, kOutputs = 2;

    static int32_t check(const Dims& scores, const Dims& features, const Dims& kept) {
        if (scores.nbDims != 2 || features.nbDims != 3 || kept.nbDims != 3) {
            return refuse("expected scores [B, N] and features [B, N, D]");
        }
        if (scores.d[1] > kTopKGatherTokens) return refuse("more than 32768 tokens");
        if (scores.d[1] >= 0 && kept.d[1] > scores.d[1]) return refuse("keep is greater than the number of tokens");
        return 0;
    }

    PluginFieldCollection serialized_{};
};

}  // namespace

IPluginCreatorV3One& topk_gather_creator() {
    static auto* creator = new Creator<TopKGather>;  // never destroyed: the registry may outlive this library's statics
    return *creator;
}

}  // namespace trtprune
