#include <trtprune/trtprune.h>

#include "c_api/boundary.hpp"
#include "c_api/settings.hpp"

using namespace trtprune;
using namespace trtprune::c_api;

namespace {

std::shared_ptr<ResultObject> result_object(Result result) {
    std::string json = result.to_json();
    return std::make_shared<ResultObject>(ResultObject{std::move(result), std::move(json)});
}

}  // namespace

extern "C" {

int32_t trtprune_vlm_load(const char* path, const trtprune_load_options* options, trtprune_vlm** vlm,
                          trtprune_error** error) {
    return guarded(error, [&] {
        trtprune_vlm*& place = output(vlm, "vlm");
        Vlm loaded = Vlm::load(text(path, "path"), load_options(options));
        Info info = loaded.info();
        place = handle(std::make_shared<VlmObject>(VlmObject{std::move(loaded), std::move(info)}));
    });
}

int32_t trtprune_vlm_info(const trtprune_vlm* vlm, trtprune_info* info, trtprune_error** error) {
    return guarded(error, [&] { fill(info, object<VlmObject>(vlm)->info); });
}

int32_t trtprune_vlm_generate(trtprune_vlm* vlm, const trtprune_image* const* images, size_t image_count,
                              const char* prompt, const trtprune_generate_options* options,
                              trtprune_text_callback on_text, void* user_data, trtprune_result** result,
                              trtprune_error** error) {
    return guarded(error, [&] {
        trtprune_result*& place = output(result, "result");
        const auto model = object<VlmObject>(vlm);
        Result answer = model->vlm.generate(c_api::images(images, image_count), text(prompt, "prompt"),
                                            generate_options(options), callback(on_text, user_data));
        place = handle(result_object(std::move(answer)));
    });
}

int32_t trtprune_vlm_generate_batch(trtprune_vlm* vlm, const trtprune_request* const* requests, size_t request_count,
                                    const trtprune_generate_options* options, trtprune_result** results,
                                    trtprune_error** error) {
    return guarded(error, [&] {
        const auto model = object<VlmObject>(vlm);
        const std::vector<Request> rows = c_api::requests(requests, request_count);
        if (results == nullptr) throw InputError("results=NULL", "an array with room for each request's handle");
        std::fill(results, results + request_count, nullptr);
        std::vector<std::shared_ptr<ResultObject>> answers;
        for (Result& answer : model->vlm.generate_batch(rows, generate_options(options))) {
            answers.push_back(result_object(std::move(answer)));
        }
        try {
            for (std::size_t i = 0; i < answers.size(); ++i) results[i] = handle(std::move(answers[i]));
        } catch (...) {
            for (std::size_t i = 0; i < request_count; ++i) {
                release<ResultObject>(results[i]);
                results[i] = nullptr;
            }
            throw;
        }
    });
}

int32_t trtprune_vlm_free(trtprune_vlm* vlm) {
    return release<VlmObject>(vlm);
}

int32_t trtprune_vlm_chat(trtprune_vlm* vlm, const trtprune_image* const* images, size_t image_count,
                          const char* system, trtprune_conversation** conversation, trtprune_error** error) {
    return guarded(error, [&] {
        trtprune_conversation*& place = output(conversation, "conversation");
        auto model = object<VlmObject>(vlm);
        std::optional<std::string> message;
        if (system != nullptr) message = system;
        Conversation started = model->vlm.chat(c_api::images(images, image_count), message);
        place = handle(std::make_shared<ConversationObject>(ConversationObject{std::move(model), std::move(started)}));
    });
}

int32_t trtprune_conversation_ask(trtprune_conversation* conversation, const char* prompt,
                                  const trtprune_generate_options* options, int32_t repick,
                                  trtprune_text_callback on_text, void* user_data, trtprune_result** result,
                                  trtprune_error** error) {
    return guarded(error, [&] {
        trtprune_result*& place = output(result, "result");
        const auto turns = object<ConversationObject>(conversation);
        Result answer = turns->conversation.ask(text(prompt, "prompt"), generate_options(options),
                                                callback(on_text, user_data), repick != 0);
        place = handle(result_object(std::move(answer)));
    });
}

int32_t trtprune_conversation_free(trtprune_conversation* conversation) {
    return release<ConversationObject>(conversation);
}

}  // extern "C"
