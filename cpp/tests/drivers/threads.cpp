// Several threads at one model, or at a model each.  A line in: {"scenario": …, "directory": …, "image": [path, width,
// height], "rounds": …, "threads": …}; a line out: what the threads saw.  Answers are lists of token ids; errors are
// their codes.

#include <trtprune/trtprune.h>

#include <atomic>
#include <fstream>
#include <future>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <trtprune/vlm.hpp>
#include <vector>

#include "json_lines.hpp"

using nlohmann::json;
using trtprune::Conversation;
using trtprune::GenerateOptions;
using trtprune::Image;
using trtprune::TextCallback;
using trtprune::Vlm;

namespace {

const char* const prompt = "What is on the table?";
constexpr std::int64_t tokens = 6;

/// What a scenario works with.
struct Setting {
    std::string directory;
    std::vector<std::uint8_t> pixels;
    std::int64_t width = 0;
    std::int64_t height = 0;
    int rounds = 1;
    int threads = 1;  // of a call; 0 for engines, which have no such setting

    Image image() const { return Image::from_rgb(pixels.data(), width, height); }
    Vlm load() const {
        trtprune::LoadOptions options;
        options.threads = threads;
        return Vlm::load(directory, options);
    }
};

Setting setting_of(const trtprune::files::Json& request) {
    const json line = request.plain();
    Setting setting;
    setting.directory = line.at("directory");
    std::ifstream file(line.at("image").at(0).get<std::string>(), std::ios::binary);
    setting.pixels.assign(std::istreambuf_iterator<char>(file), {});
    setting.width = line.at("image").at(1);
    setting.height = line.at("image").at(2);
    setting.rounds = line.value("rounds", 1);
    setting.threads = line.value("threads", 1);
    if (static_cast<std::int64_t>(setting.pixels.size()) != setting.width * setting.height * 3) {
        throw std::runtime_error("the image's file has another size");
    }
    return setting;
}

GenerateOptions options() {
    GenerateOptions result;
    result.max_new_tokens = tokens;
    result.ignore_eos = true;
    return result;
}

json ask(Vlm& vlm, const Image& image, const TextCallback& on_text = {}) {
    return vlm.generate({image}, prompt, options(), on_text).token_ids;
}

/// The work's ids, or the code of its error.
template <typename Work>
json outcome(const Work& work) {
    try {
        return work();
    } catch (const trtprune::Error& error) {
        return static_cast<int>(error.code());
    }
}

/// A callback that tells its first piece, and waits there until it may go on.
struct Pause {
    std::promise<void> reached;
    std::promise<void> done;

    TextCallback callback() {
        return [this, first = true](std::string_view) mutable {
            if (first) {
                reached.set_value();
                done.get_future().wait();
            }
            first = false;
            return true;
        };
    }
};

// A call of each kind while another one runs, from the other thread and from the callback itself.
json second_call(const Setting& setting) {
    Vlm vlm = setting.load();
    const Image image = setting.image();
    const json alone = ask(vlm, image);
    Conversation turns = vlm.chat({image});
    trtprune::Request row;
    row.images = {image};
    row.prompt = prompt;
    Pause pause;
    json answer;
    std::thread first([&] { answer = outcome([&] { return ask(vlm, image, pause.callback()); }); });
    pause.reached.get_future().wait();
    const json during = {outcome([&] { return ask(vlm, image); }),
                         outcome([&] { return json(vlm.generate_batch({row}).size()); }),
                         outcome([&] { return json(turns.ask(prompt, options()).token_ids); })};
    const std::string family = vlm.info().family;
    pause.done.set_value();
    first.join();
    json inside;
    ask(vlm, image, [&](std::string_view) {
        inside = outcome([&] { return ask(vlm, image); });
        return true;
    });
    return {{"alone", alone},
            {"answer", answer},
            {"during", during},
            {"inside", inside},
            {"info", family},
            {"after", ask(vlm, image)},
            {"turn", turns.ask(prompt, options()).token_ids}};
}

// Threads that ask one model without waiting for each other.
json at_once(const Setting& setting) {
    Vlm vlm = setting.load();
    const Image image = setting.image();
    const json alone = ask(vlm, image);
    std::atomic<int> equal{0}, busy{0}, other{0};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 3; ++thread) {
        threads.emplace_back([&] {
            for (int round = 0; round < setting.rounds; ++round) {
                const json answer = outcome([&] { return ask(vlm, image); });
                ++(answer == alone ? equal : answer == TRTPRUNE_BUSY ? busy : other);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    return {{"equal", equal.load()}, {"busy", busy.load()}, {"other", other.load()}};
}

// Threads with a model each, loaded at the same time; the image is shared.
json side_by_side(const Setting& setting) {
    const Image image = setting.image();
    std::vector<json> answers(3);
    std::vector<std::thread> threads;
    for (json& answer : answers) {
        threads.emplace_back([&setting, &image, &answer] {
            answer = outcome([&] {
                Vlm vlm = setting.load();
                json all = json::array();
                for (int round = 0; round < setting.rounds; ++round) all.push_back(ask(vlm, image));
                return all;
            });
        });
    }
    for (std::thread& thread : threads) thread.join();
    return {{"answers", answers}};
}

// Conversations with features, selection and cache end in one thread, and new ones begin, while another one is
// answered.
json ended_conversations(const Setting& setting) {
    Vlm vlm = setting.load();
    const Image image = setting.image();
    const json alone = ask(vlm, image);
    std::vector<Conversation> turns;
    for (int i = 0; i < setting.rounds; ++i) {
        turns.push_back(vlm.chat({image}));
        turns.back().ask(prompt, options(), {}, false);
    }
    json wrong = json::array();
    std::atomic<bool> ended{false};
    std::thread caller([&] {
        do {
            const json answer = outcome([&] { return ask(vlm, image); });
            if (answer != alone) wrong.push_back(answer);
        } while (!ended);
    });
    while (!turns.empty()) {
        turns.pop_back();
        vlm.chat({image}, "Be brief.");
        std::this_thread::yield();
    }
    ended = true;
    caller.join();
    return {{"alone", alone}, {"wrong", wrong}, {"after", ask(vlm, image)}};
}

// What a callback throws arrives in the thread of its call, and the model serves on.
json throwing(const Setting& setting) {
    const Image image = setting.image();
    std::vector<json> seen(2);
    std::vector<std::thread> threads;
    for (json& story : seen) {
        threads.emplace_back([&setting, &image, &story] {
            Vlm vlm = setting.load();
            story = json::array();
            for (int round = 0; round < setting.rounds; ++round) {
                try {
                    ask(vlm, image, [&](std::string_view) -> bool { throw std::out_of_range("mine"); });
                } catch (const std::out_of_range& failure) {
                    story.push_back(failure.what());
                }
                story.push_back(ask(vlm, image));
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    return {{"seen", seen}};
}

// -- handles of the C interface --

/// The handles of one call.
struct Handles {
    trtprune_image* image = nullptr;
    trtprune_vlm* vlm = nullptr;
    trtprune_conversation* turns = nullptr;

    explicit Handles(const Setting& setting) {
        trtprune_load_options load{};
        load.struct_size = sizeof load;
        load.threads = setting.threads;
        check(trtprune_image_from_rgb(setting.pixels.data(), setting.width, setting.height, 0, &image, nullptr));
        check(trtprune_vlm_load(setting.directory.c_str(), &load, &vlm, nullptr));
        check(trtprune_vlm_chat(vlm, &image, 1, nullptr, &turns, nullptr));
    }
    static void check(std::int32_t code) {
        if (code != TRTPRUNE_OK) throw std::runtime_error("code " + std::to_string(code));
    }
    std::vector<std::int32_t> free() const {
        return {trtprune_image_free(image), trtprune_vlm_free(vlm), trtprune_conversation_free(turns)};
    }
};

std::int32_t call_back(const char* piece, std::size_t length, void* user_data) {
    return (*static_cast<TextCallback*>(user_data))({piece, length}) ? 1 : 0;
}

json ids_of(trtprune_result* result) {
    std::size_t count = 0;
    const std::int64_t* ids = trtprune_result_token_ids(result, &count);
    json all = std::vector<std::int64_t>(ids, ids + count);
    trtprune_result_free(result);
    return all;
}

json ask(const Handles& handles, bool conversation, const TextCallback& on_text = {}) {
    trtprune_generate_options settings{};
    settings.struct_size = sizeof settings;
    settings.max_new_tokens = &tokens;
    settings.ignore_eos = 1;
    TextCallback callback = on_text;
    const auto function = on_text ? call_back : nullptr;
    trtprune_result* result = nullptr;
    const std::int32_t code = conversation ? trtprune_conversation_ask(handles.turns, prompt, &settings, 0, function,
                                                                       &callback, &result, nullptr)
                                           : trtprune_vlm_generate(handles.vlm, &handles.image, 1, prompt, &settings,
                                                                   function, &callback, &result, nullptr);
    return code == TRTPRUNE_OK ? ids_of(result) : json(code);
}

// All handles of a call are freed while it runs, by several threads at once; each is freed once.
json freed_handles(const Setting& setting) {
    json stories = json::array();
    for (const bool conversation : {false, true}) {
        const Handles handles(setting);
        const json alone = ask(handles, false);
        Pause pause;
        json answer;
        std::thread caller([&] { answer = ask(handles, conversation, pause.callback()); });
        pause.reached.get_future().wait();
        std::vector<std::future<std::vector<std::int32_t>>> frees;
        for (int i = 0; i < 3; ++i) frees.push_back(std::async(std::launch::async, [&] { return handles.free(); }));
        json freed = json::array({0, 0, 0});
        for (auto& codes : frees) {
            const std::vector<std::int32_t> each = codes.get();
            for (std::size_t i = 0; i < each.size(); ++i) freed[i] = freed[i].get<int>() + (each[i] == TRTPRUNE_OK);
        }
        const json later = ask(handles, conversation);
        pause.done.set_value();
        caller.join();
        stories.push_back({{"alone", alone}, {"answer", answer}, {"freed", freed}, {"later", later}});
    }
    return {{"stories", stories}};
}

json run(const trtprune::files::Json& request) {
    const std::string& scenario = drivers::text(request, "scenario");
    const Setting setting = setting_of(request);
    if (scenario == "second_call") return second_call(setting);
    if (scenario == "at_once") return at_once(setting);
    if (scenario == "side_by_side") return side_by_side(setting);
    if (scenario == "ended_conversations") return ended_conversations(setting);
    if (scenario == "throwing") return throwing(setting);
    if (scenario == "freed_handles") return freed_handles(setting);
    throw std::runtime_error("no scenario " + scenario);
}

}  // namespace

int main() {
    return drivers::answer_lines(run);
}
