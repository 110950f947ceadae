#include "engine_dir/facts.hpp"

namespace trtprune::engine_dir {

Info info_of(const EngineDir& directory, const std::string& provider) {
    Info info;
    info.model_id = directory.model.id;
    info.family = directory.model.family;
    info.backend = directory.backend;
    info.provider = provider;
    info.dtype = directory.dtype;
    info.weight_dtype = directory.weight_dtype.value_or("");
    info.method = directory.pruning.method;
    info.keep = directory.pruning.keep;
    info.keep_range = {directory.pruning.keep_range[0], directory.pruning.keep_range[1]};
    info.visual_tokens = {directory.vision.tokens[0], directory.vision.tokens[1]};
    info.capacity = directory.kv.capacity;
    info.max_batch_size = directory.engines ? directory.engines->max_batch_size : 0;
    return info;
}

}  // namespace trtprune::engine_dir
