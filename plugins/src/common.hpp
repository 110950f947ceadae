// What both plugins and their creators share.
#pragma once

#include <NvInferRuntime.h>

#include <initializer_list>
#include <vector>

namespace trtprune {

constexpr char kNamespace[] = "trtprune";
constexpr char kVersion[] = "1";

/// Passes a message on to the logger of the engine at work, or to standard error.
void report_error(const char* plugin, const char* message);

using Severity = nvinfer1::ILogger::Severity;

inline bool is_float(nvinfer1::DataType type) {
    return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kBF16;
}

inline bool is_linear(const nvinfer1::PluginTensorDesc& tensor, nvinfer1::DataType type) {
    return tensor.type == type && tensor.format == nvinfer1::TensorFormat::kLINEAR;
}

/// An IPluginV3 with the three capabilities TensorRT asks for; `Derived` is copied to be cloned.
template <class Derived> class Plugin : public nvinfer1::IPluginV3,
                                        public nvinfer1::IPluginV3OneCore,
                                        public nvinfer1::IPluginV3OneBuild,
                                        public nvinfer1::IPluginV3OneRuntime {
  public:
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE:
                return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD:
                return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME:
                return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    nvinfer1::IPluginV3* clone() noexcept override {
        try {
            return new Derived(*static_cast<const Derived*>(this));
        } catch (...) {
            return nullptr;
        }
    }
    /// The plugins hold no resource of a context, so a copy serves it.
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

    const char* getPluginName() const noexcept override { return Derived::kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

  protected:
    /// Reports `message` and returns TensorRT's "no".
    static int32_t refuse(const char* message) {
        report_error(Derived::kName, message);
        return 1;
    }
};

/// Makes `Made`, which says its name, its attributes' fields, and in from_fields() how to read them.
template <class Made> class Creator : public nvinfer1::IPluginCreatorV3One {
  public:
    Creator() : fields_(Made::fields()), collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

    nvinfer1::IPluginV3* createPlugin(const char* /*name*/, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase /*phase*/) noexcept override {
        try {
            return Made::from_fields(fields);
        } catch (...) {
            return nullptr;
        }
    }
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return Made::kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

  private:
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

/// One creator for each plugin of this library.
nvinfer1::IPluginCreatorV3One& topk_gather_creator();
nvinfer1::IPluginCreatorV3One& maxmin_select_creator();

}  // namespace trtprune
