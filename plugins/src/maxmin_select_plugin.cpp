// MaxMinSelect for TensorRT: the greedy selection of maxmin_select.cuh.
//
//   inputs      similarity float32 [B, N, N], close float32 [B, N], steps int64 [1]
//   attribute   mode: "maxmin" (default) or "meansim"
//   output      close float32 [B, N] after `steps` picks: 3.0e38 at every token picked or taken before
#include <cstring>
#include <string>

#include "common.hpp"
#include "launch.hpp"

namespace trtprune {
namespace {

using namespace nvinfer1;

constexpr const char* kModes[] = {"maxmin", "meansim"};  // in the order of TRTPRUNE_MAXMIN, TRTPRUNE_MEANSIM

class MaxMinSelect final : public Plugin<MaxMinSelect> {
  public:
    static constexpr char kName[] = "MaxMinSelect";

    static std::vector<PluginField> fields() { return {{"mode", nullptr, PluginFieldType::kCHAR, 0}}; }

    /// Null, with a message, for a mode that does not exist.
    static MaxMinSelect* from_fields(const PluginFieldCollection* fields) {
        std::string mode = kModes[0];
        for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
            const PluginField& field = fields->fields[i];
            if (std::strcmp(field.name, "mode") != 0 || field.data == nullptr) continue;
            if (field.type != PluginFieldType::kCHAR || field.length < 0) {
                refuse("the attribute mode must be a string");
                return nullptr;
            }
            const auto* text = static_cast<const char*>(field.data);
            mode.assign(text, strnlen(text, static_cast<size_t>(field.length)));
        }
        for (int i = 0; i < 2; ++i) {
            if (mode == kModes[i]) return new MaxMinSelect(i);
        }
        refuse(("unknown mode " + mode + "; there are maxmin and meansim").c_str());
        return nullptr;
    }

    explicit MaxMinSelect(int mode) : mode_(mode) { describe(); }
    MaxMinSelect(const MaxMinSelect& other) : Plugin<MaxMinSelect>(other), mode_(other.mode_) { describe(); }
    MaxMinSelect& operator=(const MaxMinSelect&) = delete;

    const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &serialized_; }

    int32_t getNbOutputs() const noexcept override { return 1; }

    int32_t getOutputDataTypes(DataType* types, int32_t nbOutputs, const DataType* inputTypes,
                               int32_t nbInputs) const noexcept override {
        if (nbInputs != kInputs || nbOutputs != 1) return refuse("wrong number of inputs or outputs");
        if (inputTypes[0] != DataType::kFLOAT || inputTypes[1] != DataType::kFLOAT ||
            inputTypes[2] != DataType::kINT64) {
            return refuse("similarity and close must be float32, steps int64");
        }
        types[0] = DataType::kFLOAT;
        return 0;
    }

    int32_t getOutputShapes(const DimsExprs* inputs, int32_t nbInputs, const DimsExprs*, int32_t nbShapeInputs,
                            DimsExprs* outputs, int32_t nbOutputs, IExprBuilder&) noexcept override {
        if (nbInputs != kInputs || nbShapeInputs != 0 || nbOutputs != 1 || inputs[0].nbDims != 3 ||
            inputs[1].nbDims != 2) {
            return refuse("expected similarity [B, N, N], close [B, N] and steps [1]");
        }
        outputs[0] = inputs[1];
        return 0;
    }

    bool supportsFormatCombination(int32_t pos, const DynamicPluginTensorDesc* inOut, int32_t nbInputs,
                                   int32_t nbOutputs) noexcept override {
        if (nbInputs != kInputs || nbOutputs != 1 || pos < 0 || pos > kInputs) return false;
        return is_linear(inOut[pos].desc, pos == 2 ? DataType::kINT64 : DataType::kFLOAT);
    }

    int32_t configurePlugin(const DynamicPluginTensorDesc* in, int32_t nbInputs, const DynamicPluginTensorDesc*,
                            int32_t) noexcept override {
        return nbInputs == kInputs ? check(in[0].max, in[1].max) : refuse("wrong number of inputs");
    }

    int32_t onShapeChange(const PluginTensorDesc* in, int32_t nbInputs, const PluginTensorDesc*,
                          int32_t) noexcept override {
        return nbInputs == kInputs ? check(in[0].dims, in[1].dims) : refuse("wrong number of inputs");
    }

    const char* getTimingCacheID() noexcept override { return kModes[mode_]; }

    int32_t enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        const Dims& close = in[1].dims;
        const cudaError_t error = launch_maxmin_select(
            static_cast<const float*>(inputs[0]), static_cast<const float*>(inputs[1]), close.d[0], close.d[1],
            static_cast<const int64_t*>(inputs[2]), mode_, static_cast<float*>(outputs[0]), stream);
        return error == cudaSuccess ? 0 : refuse(cudaGetErrorString(error));
    }

  private:
    static constexpr int32_t kInputs = 3;

    static int32_t check(const Dims& similarity, const Dims& close) {
        if (similarity.nbDims != 3 || close.nbDims != 2)
            return refuse("expected similarity [B, N, N] and close [B, N]");
        if (similarity.d[1] != similarity.d[2] || similarity.d[2] != close.d[1]) {
            return refuse("similarity and close differ in the number of tokens");
        }
        if (close.d[1] > kMaxMinSelectTokens) return refuse("more than 16384 tokens");
        return 0;
    }

    /// The fields point into this object, so a copy makes its own.
    void describe() {
        field_ = {"mode", kModes[mode_], PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(kModes[mode_]))};
        serialized_ = {1, &field_};
    }

    int mode_;
    PluginField field_{};
    PluginFieldCollection serialized_{};
};

}  // namespace

IPluginCreatorV3One& maxmin_select_creator() {
    static auto* creator =
        new Creator<MaxMinSelect>;  // never destroyed: the registry may outlive this library's statics
    return *creator;
}

}  // namespace trtprune
