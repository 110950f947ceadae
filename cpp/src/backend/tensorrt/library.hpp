#pragma once

#include <NvInferRuntime.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

/// The TensorRT library, loaded at run time, and its log.
///
/// TensorRT reports most failures in its log only: a call returns NULL, or succeeds with another result.  So callers
/// record its messages during the call.
namespace trtprune::backend::tensorrt {

/// TensorRT's errors while the record was open, in order, each as one line.
class MessageRecord {
  public:
    MessageRecord();
    ~MessageRecord();
    MessageRecord(const MessageRecord&) = delete;
    MessageRecord& operator=(const MessageRecord&) = delete;

    bool errors() const;
    /// The first error: later ones are mostly its consequences.
    std::string why(const std::string& otherwise = "no reason was given") const;

  private:
    friend class Log;
    std::vector<std::string> errors_;
};

/// The logger of the process.  TensorRT keeps the first logger it is given for messages that belong to no object, so
/// it lives until the end.
class Log : public nvinfer1::ILogger {
  public:
    static Log& instance();
    void log(Severity severity, const char* message) noexcept override;

  private:
    friend class MessageRecord;
    mutable std::mutex mutex_;
    std::vector<MessageRecord*> open_;
};

/// The library.
class Library {
  public:
    /// \param path  The library's file; empty: `$TRTPRUNE_TENSORRT`, or libnvinfer.so of the version of the headers.
    /// \throws BackendError  if it is missing, or of another major version than the headers.
    explicit Library(const std::string& path);
    ~Library();
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;

    /// As `10.15.1.29`.
    const std::string& version() const noexcept { return version_; }
    /// \throws BackendError  if TensorRT makes none.
    std::unique_ptr<nvinfer1::IRuntime> make_runtime();
    nvinfer1::IPluginRegistry* plugins();

  private:
    void* symbol(const char* name) const;

    void* handle_ = nullptr;
    std::string path_;
    std::string version_;
};

/// Registers the plugins that the engines were built with (name and version).
///
/// \throws BackendError  if one is missing, is there in another version only, or the plugin library does not fit.
void load_plugins(Library& library, const std::map<std::string, std::string>& needed);

}  // namespace trtprune::backend::tensorrt
