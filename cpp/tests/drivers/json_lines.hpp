#pragma once

#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <trtprune/error.hpp>

#include "files/json.hpp"

/// What drivers share: JSON lines on standard input, an answer to each on standard output.
namespace drivers {

/// The member of a request, which must be there.
inline const trtprune::files::Json& member(const trtprune::files::Json& request, const char* name) {
    const auto* value = request.member(name);
    if (value == nullptr) throw std::runtime_error(std::string("no member ") + name);
    return *value;
}

inline const std::string& text(const trtprune::files::Json& request, const char* name) {
    return *member(request, name).get<std::string>();
}

/// Answers each line; an expected failure is `{"error": [code, message, hint]}`.
inline int answer_lines(const std::function<nlohmann::json(const trtprune::files::Json&)>& answer) {
    std::string line;
    while (std::getline(std::cin, line)) {
        nlohmann::json result;
        try {
            result = answer(trtprune::files::parse_json(line));
        } catch (const trtprune::Error& error) {
            result = {{"error", {static_cast<int>(error.code()), error.message(), error.hint()}}};
        }
        std::cout << result.dump(-1, ' ', true) << std::endl;
    }
    return 0;
}

}  // namespace drivers
