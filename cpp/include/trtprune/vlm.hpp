#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <trtprune/error.hpp>
#include <trtprune/export.hpp>
#include <trtprune/image.hpp>
#include <utility>
#include <vector>

namespace trtprune {

/// Settings of loading a directory.
struct LoadOptions {
    std::string provider;                                 ///< `cpu`, `cuda`, `tensorrt`; empty: the build's own
    int threads = 0;                                      ///< processor threads; 0: all that the process may use
    std::string verify = "auto";                          ///< level of the file checks: `auto`, `none`, `fast`, `full`
    std::map<std::string, std::string> provider_options;  ///< as `--provider-option` of the command line
    std::string library;  ///< the ONNX Runtime or TensorRT library to load; empty: see docs/cpp.md
};

/// Settings of an answer.  What is not set comes from the checkpoint's `generation_config.json`, see docs/python.md.
struct GenerateOptions {
    std::optional<std::int64_t> keep;  ///< visual tokens to keep of each image; not set: the build's default
    std::optional<std::int64_t> max_new_tokens;
    std::optional<double> temperature;
    std::optional<std::int64_t> top_k;
    std::optional<double> top_p;
    std::optional<double> repetition_penalty;
    std::optional<std::uint64_t> seed;
    std::optional<std::vector<std::string>> stop;  ///< texts that end the answer
    bool ignore_eos = false;
    std::optional<std::string> system;  ///< a system prompt
    bool raw_prompt = false;            ///< the prompt as it is, with a placeholder for each image
    std::optional<double> keep_ratio;   ///< the budget as a share of each image's visual tokens
};

/// One row of a batch.  What is not set comes from the options of the call.
struct Request {
    std::vector<Image> images;
    std::string prompt;
    std::optional<std::int64_t> keep;
    std::optional<double> keep_ratio;
    std::optional<std::string> system;
    bool raw_prompt = false;
    std::optional<std::int64_t> max_new_tokens;
    std::optional<std::uint64_t> seed;
};

/// An answer; the members are those of `trtprune.Result` in Python.
struct Result {
    std::string text;                                     ///< without special tokens and without the stop string
    std::vector<std::int64_t> token_ids;                  ///< all chosen ids, with the end-of-sequence token
    std::string finish_reason;                            ///< `stop`, `length`, or `callback` if the callback ended it
    std::string method;                                   ///< the pruning method
    std::int64_t visual_tokens = 0;                       ///< of all images together, before pruning
    std::int64_t kept_tokens = 0;                         ///< of all images together
    std::vector<std::vector<std::int64_t>> kept_indices;  ///< for each image, ascending
    std::map<std::string, double> timings;                ///< milliseconds by stage, and `total`
    double tokens_per_second = 0;
    std::int64_t kv_cache_bytes = 0;
    std::int64_t prompt_tokens = 0;
    std::vector<std::vector<std::int64_t>> segment_tokens;  ///< if the decoder prunes: for each image, by segment
    double tokens_per_layer = 0;

    /// Milliseconds from the question to the logits of the first token.
    TRTPRUNE_API double time_to_first_token_ms() const;
    /// The object that `trtprune run --json` prints.
    TRTPRUNE_API std::string to_json() const;
};

/// Receives each piece of an answer's text; returns whether to go on.
using TextCallback = std::function<bool(std::string_view)>;

/// Facts of a loaded directory, as `trtprune inspect` prints them.
struct Info {
    std::string model_id;
    std::string family;
    std::string backend;
    std::string provider;
    std::string dtype;
    std::string weight_dtype;  ///< empty: not quantised
    std::string method;
    std::int64_t keep = 0;
    std::pair<std::int64_t, std::int64_t> keep_range;
    std::pair<std::int64_t, std::int64_t> visual_tokens;  ///< the fewest and the most of an image
    std::int64_t capacity = 0;                            ///< tokens of a request, prompt and answer
    std::int64_t max_batch_size = 0;                      ///< 0: any
};

class Conversation;

/// A model that answers questions about images.
///
/// Serves one thread at a time: a call while another runs is a BusyError.  Several objects in one process are
/// independent of each other.
class TRTPRUNE_API Vlm {
  public:
    /// Opens an engine directory.
    ///
    /// \throws EngineDirError  if the directory is damaged or foreign.
    /// \throws BackendError    if a provider, library or GPU is missing or refuses the directory.
    static Vlm load(const std::string& path, const LoadOptions& options = {});

    Vlm(Vlm&&) noexcept;
    Vlm& operator=(Vlm&&) noexcept;
    ~Vlm();

    /// Answers a question about one image, or about several together.
    ///
    /// \param images   At least one.
    /// \param prompt   The question, UTF-8.
    /// \param options  Settings of the answer.
    /// \param on_text  Receives the answer piece by piece; false ends it.  An exception ends the call and is passed on.
    /// \throws InputError   for an image, prompt or setting that cannot be used.
    /// \throws BudgetError  for a budget outside of the build's range.
    Result generate(const std::vector<Image>& images, const std::string& prompt, const GenerateOptions& options = {},
                    const TextCallback& on_text = {});

    /// Answers requests as one batch; prompts may differ in length and in their images.
    std::vector<Result> generate_batch(const std::vector<Request>& requests, const GenerateOptions& options = {});

    /// Starts a conversation of several questions about the same images; the model must live longer.
    Conversation chat(const std::vector<Image>& images, const std::optional<std::string>& system = {});

    /// Facts of the directory.
    Info info() const;

  private:
    struct State;
    friend class Conversation;
    explicit Vlm(std::shared_ptr<State> state);
    std::shared_ptr<State> state_;
};

/// Questions and answers about the same images.
class TRTPRUNE_API Conversation {
  public:
    Conversation(Conversation&&) noexcept;
    Conversation& operator=(Conversation&&) noexcept;
    ~Conversation();

    /// Asks the next question; a failed one leaves the conversation unchanged.
    ///
    /// \param repick  Whether to select the visual tokens again for this question; false keeps selection and cache.
    Result ask(const std::string& prompt, const GenerateOptions& options = {}, const TextCallback& on_text = {},
               bool repick = true);

  private:
    struct State;
    friend class Vlm;
    explicit Conversation(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace trtprune
