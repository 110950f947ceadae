#include <atomic>
#include <exception>
#include <new>
#include <trtprune/vlm.hpp>
#include <utility>

#include "engine_dir/facts.hpp"
#include "engine_dir/opening.hpp"
#include "runtime/batch.hpp"
#include "runtime/conversation.hpp"
#include "runtime/pipeline.hpp"

namespace trtprune {

struct Vlm::State {
    State(engine_dir::Opening opening, const LoadOptions& options) : pipeline(std::move(opening), options) {}

    runtime::Pipeline pipeline;
    std::atomic<bool> busy{false};
};

struct Conversation::State {
    State(std::shared_ptr<Vlm::State> owner, const std::vector<Image>& images, const std::optional<std::string>& system)
        : vlm(std::move(owner)), turns(vlm->pipeline, images, system) {}

    std::shared_ptr<Vlm::State> vlm;
    runtime::Turns turns;
};

namespace {

// One call's turn: sessions and the memory of caches are shared by all calls.
class Call {
  public:
    explicit Call(std::atomic<bool>& busy) : busy_(busy) {
        if (busy_.exchange(true, std::memory_order_acquire)) {
            throw BusyError("this model is answering another call", "wait for that call, or load another model");
        }
    }
    ~Call() { busy_.store(false, std::memory_order_release); }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

  private:
    std::atomic<bool>& busy_;
};

// Runs a call.  What is thrown for content that no check of the directory foresees becomes an error of the directory.
template <typename Work>
auto guarded(const std::string& root, const Work& work) {
    try {
        return work();
    } catch (const runtime::CallbackFailure& failure) {
        std::rethrow_exception(failure.exception);
    } catch (const Error&) {
        throw;
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& error) {
        throw EngineDirError(root + ": cannot be run: " + error.what(), "build the directory again");
    }
}

}  // namespace

Vlm::Vlm(std::shared_ptr<State> state) : state_(std::move(state)) {}
Vlm::Vlm(Vlm&&) noexcept = default;
Vlm& Vlm::operator=(Vlm&&) noexcept = default;
Vlm::~Vlm() = default;

Vlm Vlm::load(const std::string& path, const LoadOptions& options) {
    return guarded(
        path, [&] { return Vlm(std::make_shared<State>(engine_dir::begin_engine_dir(path, options.verify), options)); });
}

Result Vlm::generate(const std::vector<Image>& images, const std::string& prompt, const GenerateOptions& options,
                     const TextCallback& on_text) {
    const Call call(state_->busy);
    Request request;
    request.images = images;
    request.prompt = prompt;
    request.system = options.system;
    request.raw_prompt = options.raw_prompt;
    return guarded(state_->pipeline.config().root,
                   [&] { return runtime::run_batch(state_->pipeline, {request}, options, on_text).at(0); });
}

std::vector<Result> Vlm::generate_batch(const std::vector<Request>& requests, const GenerateOptions& options) {
    const Call call(state_->busy);
    std::vector<Request> rows = requests;
    for (Request& row : rows) {
        if (!row.system) row.system = options.system;
        row.raw_prompt = row.raw_prompt || options.raw_prompt;
    }
    return guarded(state_->pipeline.config().root, [&] { return runtime::run_batch(state_->pipeline, rows, options); });
}

Conversation Vlm::chat(const std::vector<Image>& images, const std::optional<std::string>& system) {
    return Conversation(std::make_unique<Conversation::State>(state_, images, system));
}

Info Vlm::info() const {
    return engine_dir::info_of(state_->pipeline.config(), state_->pipeline.provider());
}

Conversation::Conversation(std::unique_ptr<State> state) : state_(std::move(state)) {}
Conversation::Conversation(Conversation&&) noexcept = default;
Conversation& Conversation::operator=(Conversation&&) noexcept = default;
Conversation::~Conversation() = default;

Result Conversation::ask(const std::string& prompt, const GenerateOptions& options, const TextCallback& on_text,
                         bool repick) {
    const Call call(state_->vlm->busy);
    return guarded(state_->vlm->pipeline.config().root,
                   [&] { return state_->turns.ask(prompt, options, on_text, repick); });
}

}  // namespace trtprune
