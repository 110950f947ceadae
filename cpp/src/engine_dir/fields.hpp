#pragma once

#include "engine_dir/json_structs.hpp"
#include "engine_dir/schema.hpp"

/// The members of the schema's structs by their names in `config.json`, for reading and writing them.
namespace trtprune::engine_dir {

template <class V>
void fields(V& visit, TensorSpec& spec) {
    visit("name", spec.name);
    visit("dtype", spec.dtype);
    visit("shape", spec.shape);
}

template <class V>
void fields(V& visit, ComponentInfo& component) {
    visit("name", component.name);
    visit("role", component.role);
    visit("segment", component.segment);
    visit("onnx", component.onnx);
    visit("engine", component.engine);
    visit("inputs", component.inputs);
    visit("outputs", component.outputs);
    visit("profiles", component.profiles);
    visit("dtype", component.dtype);
}

template <class V>
void fields(V& visit, ModelInfo& model) {
    visit("id", model.id);
    visit("revision", model.revision);
    visit("digest", model.digest);
    visit("family", model.family);
    visit("image_size", model.image_size);
    visit("patch_grid", model.patch_grid);
    visit("visual_tokens", model.visual_tokens);
    visit("has_cls", model.has_cls);
    visit("hidden_size", model.hidden_size);
    visit("vocab_size", model.vocab_size);
    visit("max_positions", model.max_positions);
    visit("image_token", model.image_token);
    visit("image_token_id", model.image_token_id);
    visit("eos_token_ids", model.eos_token_ids);
    visit("keeps_cls_feature", model.keeps_cls_feature, with_default);
    visit("first_patch", model.first_patch, with_default);
    visit("video_token", model.video_token, with_default);
    visit("deepstack_levels", model.deepstack_levels, with_default);
}

template <class V>
void fields(V& visit, VisionInfo& vision) {
    visit("processor", vision.processor);
    visit("settings", vision.settings);
    visit("tokens", vision.tokens);
    visit("crops", vision.crops);
    visit("newlines", vision.newlines);
    visit("saliency", vision.saliency);
}

template <class V>
void fields(V& visit, PositionsInfo& positions) {
    visit("rule", positions.rule);
    visit("axes", positions.axes);
    visit("sections", positions.sections);
    visit("interleaved", positions.interleaved, with_default);
}

template <class V>
void fields(V& visit, PruningInfo& pruning) {
    visit("method", pruning.method);
    visit("keep", pruning.keep);
    visit("keep_range", pruning.keep_range);
    visit("options", pruning.options);
    visit("needs", pruning.needs);
    visit("text_span", pruning.text_span);
    visit("schedule", pruning.schedule, with_default);
}

template <class V>
void fields(V& visit, KvInfo& kv) {
    visit("capacity", kv.capacity);
    visit("bytes_per_token", kv.bytes_per_token);
    visit("num_layers", kv.num_layers);
    visit("num_kv_heads", kv.num_kv_heads);
    visit("head_dim", kv.head_dim);
    visit("dtype", kv.dtype);
    visit("segment_layers", kv.segment_layers, with_default);
}

template <class V>
void fields(V& visit, GenerationInfo& info) {
    visit("source", info.source, with_default);
    visit("do_sample", info.do_sample, with_default);
    visit("temperature", info.temperature, with_default);
    visit("top_h", info.top_h, with_default);
    visit("top_k", info.top_k, with_default);
    visit("top_p", info.top_p, with_default);
    visit("min_p", info.min_p, with_default);
    visit("typical_p", info.typical_p, with_default);
    visit("epsilon_cutoff", info.epsilon_cutoff, with_default);
    visit("eta_cutoff", info.eta_cutoff, with_default);
    visit("sequence_bias", info.sequence_bias, with_default);
    visit("encoder_repetition_penalty", info.encoder_repetition_penalty, with_default);
    visit("repetition_penalty", info.repetition_penalty, with_default);
    visit("no_repeat_ngram_size", info.no_repeat_ngram_size, with_default);
    visit("encoder_no_repeat_ngram_size", info.encoder_no_repeat_ngram_size, with_default);
    visit("bad_words_ids", info.bad_words_ids, with_default);
    visit("min_length", info.min_length, with_default);
    visit("min_new_tokens", info.min_new_tokens, with_default);
    visit("max_length", info.max_length, with_default);
    visit("max_new_tokens", info.max_new_tokens, with_default);
    visit("forced_bos_token_id", info.forced_bos_token_id, with_default);
    visit("forced_eos_token_id", info.forced_eos_token_id, with_default);
    visit("remove_invalid_values", info.remove_invalid_values, with_default);
    visit("exponential_decay_length_penalty", info.exponential_decay_length_penalty, with_default);
    visit("suppress_tokens", info.suppress_tokens, with_default);
    visit("begin_suppress_tokens", info.begin_suppress_tokens, with_default);
    visit("stop_strings", info.stop_strings, with_default);
}

template <class V>
void fields(V& visit, EngineInfo& engines) {
    visit("version", engines.version);
    visit("targets", engines.targets);
    visit("max_batch_size", engines.max_batch_size);
    visit("max_input_len", engines.max_input_len);
    visit("max_images", engines.max_images);
    visit("attention", engines.attention);
    visit("version_compatible", engines.version_compatible, with_default);
    visit("hardware_compatibility", engines.hardware_compatibility, with_default);
    visit("weight_streaming", engines.weight_streaming, with_default);
    visit("plugins", engines.plugins, with_default);
}

template <class V>
void fields(V& visit, EngineDir& directory) {
    visit("schema_version", directory.schema_version);
    visit("backend", directory.backend);
    visit("lowering", directory.lowering);
    visit("dtype", directory.dtype);
    visit("model", directory.model);
    visit("vision", directory.vision);
    visit("text", directory.text);
    visit("positions", directory.positions);
    visit("pruning", directory.pruning);
    visit("components", directory.components);
    visit("chain", directory.chain);
    visit("kv", directory.kv);
    visit("generation", directory.generation);
    visit("built_with", directory.built_with);
    visit("build_digest", directory.build_digest);
    visit("files", directory.files);
    visit("weight_dtype", directory.weight_dtype, with_default);
    visit("engines", directory.engines, with_default);
}

}  // namespace trtprune::engine_dir

namespace trtprune {

// Beside the struct, so that it is found by the struct's own namespace.
template <class V>
void fields(V& visit, ScheduleInfo& schedule) {
    using engine_dir::with_default;
    visit("depth", schedule.depth);
    visit("points", schedule.points);
    visit("rule", schedule.rule);
    visit("counts", schedule.counts, with_default);
    visit("ratios", schedule.ratios, with_default);
    visit("ratio_tokens", schedule.ratio_tokens, with_default);
    visit("exact", schedule.exact, with_default);
    visit("nominal_shift", schedule.nominal_shift, with_default);
    visit("recycled", schedule.recycled, with_default);
    visit("per_vector", schedule.per_vector, with_default);
    visit("ranked", schedule.ranked, with_default);
    visit("scales", schedule.scales, with_default);
    visit("option", schedule.option, with_default);
}

}  // namespace trtprune

namespace trtprune::text {

template <class V>
void fields(V& visit, AddedTokenInfo& token) {
    visit("id", token.id);
    visit("content", token.content);
    visit("single_word", token.single_word);
    visit("lstrip", token.lstrip);
    visit("rstrip", token.rstrip);
    visit("normalized", token.normalized);
    visit("special", token.special);
    visit("skipped", token.skipped);
    visit("decoded", token.decoded);
}

template <class V>
void fields(V& visit, TokenizerInfo& tokenizer) {
    visit("added_tokens", tokenizer.added_tokens);
    visit("encode_special_tokens", tokenizer.encode_special_tokens);
    visit("before", tokenizer.before);
    visit("after", tokenizer.after);
    visit("bos", tokenizer.bos);
}

template <class V>
void fields(V& visit, PieceInfo& piece) {
    using engine_dir::with_default;
    visit("kind", piece.kind, engine_dir::Choices{{"literal", "images", "text", "system", "open", "close"}});
    visit("value", piece.value, with_default);
    visit("left", piece.left, with_default);
    visit("right", piece.right, with_default);
}

template <class V>
void fields(V& visit, Rule& rule) {
    visit("system", rule.system);
    visit("first", rule.first);
    visit("last", rule.last);
    visit("images", rule.images);
    visit("pieces", rule.pieces);
}

template <class V>
void fields(V& visit, Refusal& refusal) {
    visit("system", refusal.system);
    visit("several", refusal.several);
    visit("error", refusal.error, engine_dir::Choices{{"input", "directory"}});
    visit("message", refusal.message);
    visit("hint", refusal.hint);
}

template <class V>
void fields(V& visit, TemplateInfo& chat_template) {
    visit("begin", chat_template.begin);
    visit("system", chat_template.system);
    visit("user", chat_template.user);
    visit("assistant", chat_template.assistant);
    visit("end", chat_template.end);
    visit("refusals", chat_template.refusals);
    visit("own_images", chat_template.own_images);
}

template <class V>
void fields(V& visit, TextInfo& text) {
    visit("tokenizer", text.tokenizer);
    visit("template", text.chat_template);
    visit("reason", text.reason, engine_dir::with_default);
}

}  // namespace trtprune::text
