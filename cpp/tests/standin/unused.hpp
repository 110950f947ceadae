#pragma once

#include <NvInferRuntime.h>

#include "device.hpp"

/// What TensorRT's interfaces have besides the calls that the library makes: a call of it ends the process.
namespace standin {

using namespace nvinfer1;  // NOLINT: the interfaces' own types

class OtherRuntime : public apiv::VRuntime {
  public:
    nvinfer1::ICudaEngine* deserializeCudaEngine(IStreamReader&) noexcept override {
        die("unused: deserializeCudaEngine");
    }
    void setDLACore(int32_t) noexcept override { die("unused: setDLACore"); }
    int32_t getDLACore() const noexcept override { die("unused: getDLACore"); }
    int32_t getNbDLACores() const noexcept override { die("unused: getNbDLACores"); }
    void setGpuAllocator(IGpuAllocator*) noexcept override { die("unused: setGpuAllocator"); }
    void setErrorRecorder(IErrorRecorder*) noexcept override { die("unused: setErrorRecorder"); }
    IErrorRecorder* getErrorRecorder() const noexcept override { die("unused: getErrorRecorder"); }
    ILogger* getLogger() const noexcept override { die("unused: getLogger"); }
    bool setMaxThreads(int32_t) noexcept override { die("unused: setMaxThreads"); }
    int32_t getMaxThreads() const noexcept override { die("unused: getMaxThreads"); }
    void setTemporaryDirectory(char const*) noexcept override { die("unused: setTemporaryDirectory"); }
    char const* getTemporaryDirectory() const noexcept override { die("unused: getTemporaryDirectory"); }
    void setTempfileControlFlags(TempfileControlFlags) noexcept override { die("unused: setTempfileControlFlags"); }
    TempfileControlFlags getTempfileControlFlags() const noexcept override { die("unused: getTempfileControlFlags"); }
    IPluginRegistry& getPluginRegistry() noexcept override { die("unused: getPluginRegistry"); }
    void setPluginRegistryParent(IPluginRegistry*) noexcept override { die("unused: setPluginRegistryParent"); }
    IRuntime* loadRuntime(char const*) noexcept override { die("unused: loadRuntime"); }
    nvinfer1::ICudaEngine* deserializeCudaEngineV2(IStreamReaderV2&) noexcept override {
        die("unused: deserializeCudaEngineV2");
    }
};

class OtherCudaEngine : public apiv::VCudaEngine {
  public:
    int32_t getNbLayers() const noexcept override { die("unused: getNbLayers"); }
    IHostMemory* serialize() const noexcept override { die("unused: serialize"); }
    IExecutionContext* createExecutionContextWithoutDeviceMemory() noexcept override {
        die("unused: createExecutionContextWithoutDeviceMemory");
    }
    size_t getDeviceMemorySize() const noexcept override { die("unused: getDeviceMemorySize"); }
    bool isRefittable() const noexcept override { die("unused: isRefittable"); }
    char const* getName() const noexcept override { die("unused: getName"); }
    int32_t const* getProfileTensorValues(char const*, int32_t, OptProfileSelector) const noexcept override {
        die("unused: getProfileTensorValues");
    }
    EngineCapability getEngineCapability() const noexcept override { die("unused: getEngineCapability"); }
    void setErrorRecorder(IErrorRecorder*) noexcept override { die("unused: setErrorRecorder"); }
    IErrorRecorder* getErrorRecorder() const noexcept override { die("unused: getErrorRecorder"); }
    bool hasImplicitBatchDimension() const noexcept override { die("unused: hasImplicitBatchDimension"); }
    TacticSources getTacticSources() const noexcept override { die("unused: getTacticSources"); }
    ProfilingVerbosity getProfilingVerbosity() const noexcept override { die("unused: getProfilingVerbosity"); }
    IEngineInspector* createEngineInspector() const noexcept override { die("unused: createEngineInspector"); }
    Dims getTensorShape(char const*) const noexcept override { die("unused: getTensorShape"); }
    DataType getTensorDataType(char const*) const noexcept override { die("unused: getTensorDataType"); }
    bool isShapeInferenceIO(char const*) const noexcept override { die("unused: isShapeInferenceIO"); }
    int32_t getTensorBytesPerComponent(char const*) const noexcept override {
        die("unused: getTensorBytesPerComponent");
    }
    int32_t getTensorComponentsPerElement(char const*) const noexcept override {
        die("unused: getTensorComponentsPerElement");
    }
    TensorFormat getTensorFormat(char const*) const noexcept override { die("unused: getTensorFormat"); }
    char const* getTensorFormatDesc(char const*) const noexcept override { die("unused: getTensorFormatDesc"); }
    int32_t getTensorVectorizedDim(char const*) const noexcept override { die("unused: getTensorVectorizedDim"); }
    Dims getProfileShape(char const*, int32_t, OptProfileSelector) const noexcept override {
        die("unused: getProfileShape");
    }
    HardwareCompatibilityLevel getHardwareCompatibilityLevel() const noexcept override {
        die("unused: getHardwareCompatibilityLevel");
    }
    int32_t getNbAuxStreams() const noexcept override { die("unused: getNbAuxStreams"); }
    int32_t getTensorBytesPerComponentV2(char const*, int32_t) const noexcept override {
        die("unused: getTensorBytesPerComponentV2");
    }
    int32_t getTensorComponentsPerElementV2(char const*, int32_t) const noexcept override {
        die("unused: getTensorComponentsPerElementV2");
    }
    TensorFormat getTensorFormatV2(char const*, int32_t) const noexcept override { die("unused: getTensorFormatV2"); }
    char const* getTensorFormatDescV2(char const*, int32_t) const noexcept override {
        die("unused: getTensorFormatDescV2");
    }
    int32_t getTensorVectorizedDimV2(char const*, int32_t) const noexcept override {
        die("unused: getTensorVectorizedDimV2");
    }
    ISerializationConfig* createSerializationConfig() noexcept override { die("unused: createSerializationConfig"); }
    IHostMemory* serializeWithConfig(ISerializationConfig&) const noexcept override {
        die("unused: serializeWithConfig");
    }
    size_t getDeviceMemorySizeForProfile(int32_t) const noexcept override {
        die("unused: getDeviceMemorySizeForProfile");
    }
    IRefitter* createRefitter(ILogger&) noexcept override { die("unused: createRefitter"); }
    bool setWeightStreamingBudget(int64_t) noexcept override { die("unused: setWeightStreamingBudget"); }
    int64_t getWeightStreamingBudget() const noexcept override { die("unused: getWeightStreamingBudget"); }
    int64_t getMinimumWeightStreamingBudget() const noexcept override {
        die("unused: getMinimumWeightStreamingBudget");
    }
    int64_t getStreamableWeightsSize() const noexcept override { die("unused: getStreamableWeightsSize"); }
    bool isDebugTensor(char const*) const noexcept override { die("unused: isDebugTensor"); }
    int64_t getWeightStreamingBudgetV2() const noexcept override { die("unused: getWeightStreamingBudgetV2"); }
    int64_t getWeightStreamingScratchMemorySize() const noexcept override {
        die("unused: getWeightStreamingScratchMemorySize");
    }
    int64_t getDeviceMemorySizeV2() const noexcept override { die("unused: getDeviceMemorySizeV2"); }
    int64_t const* getProfileTensorValuesV2(char const*, int32_t, OptProfileSelector) const noexcept override {
        die("unused: getProfileTensorValuesV2");
    }
    IExecutionContext* createExecutionContextWithRuntimeConfig(IRuntimeConfig*) noexcept override {
        die("unused: createExecutionContextWithRuntimeConfig");
    }
    IRuntimeConfig* createRuntimeConfig() noexcept override { die("unused: createRuntimeConfig"); }
    int64_t getEngineStat(EngineStat) const noexcept override { die("unused: getEngineStat"); }
};

class OtherExecutionContext : public apiv::VExecutionContext {
  public:
    void setDebugSync(bool) noexcept override { die("unused: setDebugSync"); }
    bool getDebugSync() const noexcept override { die("unused: getDebugSync"); }
    void setProfiler(IProfiler*) noexcept override { die("unused: setProfiler"); }
    IProfiler* getProfiler() const noexcept override { die("unused: getProfiler"); }
    ICudaEngine const& getEngine() const noexcept override { die("unused: getEngine"); }
    void setName(char const*) noexcept override { die("unused: setName"); }
    char const* getName() const noexcept override { die("unused: getName"); }
    void setDeviceMemory(void*) noexcept override { die("unused: setDeviceMemory"); }
    int32_t getOptimizationProfile() const noexcept override { die("unused: getOptimizationProfile"); }
    bool allInputDimensionsSpecified() const noexcept override { die("unused: allInputDimensionsSpecified"); }
    bool allInputShapesSpecified() const noexcept override { die("unused: allInputShapesSpecified"); }
    void setErrorRecorder(IErrorRecorder*) noexcept override { die("unused: setErrorRecorder"); }
    IErrorRecorder* getErrorRecorder() const noexcept override { die("unused: getErrorRecorder"); }
    bool executeV2(void* const*) noexcept override { die("unused: executeV2"); }
    void setEnqueueEmitsProfile(bool) noexcept override { die("unused: setEnqueueEmitsProfile"); }
    bool getEnqueueEmitsProfile() const noexcept override { die("unused: getEnqueueEmitsProfile"); }
    bool reportToProfiler() const noexcept override { die("unused: reportToProfiler"); }
    Dims getTensorStrides(char const*) const noexcept override { die("unused: getTensorStrides"); }
    void const* getTensorAddress(char const*) const noexcept override { die("unused: getTensorAddress"); }
    bool setInputTensorAddress(char const*, void const*) noexcept override { die("unused: setInputTensorAddress"); }
    bool setOutputTensorAddress(char const*, void*) noexcept override { die("unused: setOutputTensorAddress"); }
    bool setInputConsumedEvent(cudaEvent_t) noexcept override { die("unused: setInputConsumedEvent"); }
    cudaEvent_t getInputConsumedEvent() const noexcept override { die("unused: getInputConsumedEvent"); }
    void* getOutputTensorAddress(char const*) const noexcept override { die("unused: getOutputTensorAddress"); }
    bool setOutputAllocator(char const*, IOutputAllocator*) noexcept override { die("unused: setOutputAllocator"); }
    IOutputAllocator* getOutputAllocator(char const*) noexcept override { die("unused: getOutputAllocator"); }
    int64_t getMaxOutputSize(char const*) const noexcept override { die("unused: getMaxOutputSize"); }
    bool setTemporaryStorageAllocator(IGpuAllocator*) noexcept override { die("unused: setTemporaryStorageAllocator"); }
    IGpuAllocator* getTemporaryStorageAllocator() const noexcept override {
        die("unused: getTemporaryStorageAllocator");
    }
    void setPersistentCacheLimit(size_t) noexcept override { die("unused: setPersistentCacheLimit"); }
    size_t getPersistentCacheLimit() const noexcept override { die("unused: getPersistentCacheLimit"); }
    bool setNvtxVerbosity(ProfilingVerbosity) noexcept override { die("unused: setNvtxVerbosity"); }
    ProfilingVerbosity getNvtxVerbosity() const noexcept override { die("unused: getNvtxVerbosity"); }
    void setAuxStreams(cudaStream_t*, int32_t) noexcept override { die("unused: setAuxStreams"); }
    bool setDebugListener(IDebugListener*) noexcept override { die("unused: setDebugListener"); }
    IDebugListener* getDebugListener() noexcept override { die("unused: getDebugListener"); }
    bool setTensorDebugState(char const*, bool) noexcept override { die("unused: setTensorDebugState"); }
    bool getDebugState(char const*) const noexcept override { die("unused: getDebugState"); }
    bool setAllTensorsDebugState(bool) noexcept override { die("unused: setAllTensorsDebugState"); }
    size_t updateDeviceMemorySizeForShapes() noexcept override { die("unused: updateDeviceMemorySizeForShapes"); }
    IRuntimeConfig* getRuntimeConfig() const noexcept override { die("unused: getRuntimeConfig"); }
    bool setUnfusedTensorsDebugState(bool) noexcept override { die("unused: setUnfusedTensorsDebugState"); }
    bool getUnfusedTensorsDebugState() const noexcept override { die("unused: getUnfusedTensorsDebugState"); }
};

}  // namespace standin
