#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace trtprune::text {

/// Turns the texts of tokens into the text they stand for.
class Decoder {
  public:
    virtual ~Decoder() = default;
    virtual void apply(std::vector<std::string>& tokens) const = 0;
    /// Whether byte tokens (`<0x0A>`) are joined to characters.
    virtual bool joins_bytes() const { return false; }
};

/// The `decoder` of a tokenizer.json; nullptr for null.
///
/// \throws EngineDirError  if it is broken, or of a kind that is not supported.
std::unique_ptr<const Decoder> read_decoder(const nlohmann::json& value, const std::string& name, int depth = 0);

}  // namespace trtprune::text
