#pragma once

#include <cstddef>
#include <cstdint>

/// What Hugging Face `tokenizers` knows of each code point; written by cpp/tools/write_unicode_tables.py.
namespace trtprune::text::tables {

/// Code points at which the general category changes, `point << 5 | category`; the order of categories is that of
/// `category_names` in unicode.cpp.
extern const std::uint32_t categories[];
extern const std::size_t categories_count;

// First and last code points of runs.
extern const std::uint32_t space[];  // \s and \w of Oniguruma
extern const std::size_t space_count;
extern const std::uint32_t word[];
extern const std::size_t word_count;
extern const std::uint32_t rust_space[];  // char::is_whitespace and char::is_numeric of Rust
extern const std::size_t rust_space_count;
extern const std::uint32_t numeric[];
extern const std::size_t numeric_count;
extern const std::uint32_t punctuation[];  // of the pre-tokenizer Punctuation
extern const std::size_t punctuation_count;
extern const std::uint32_t regex_word[];  // \w and \s of Rust's regex
extern const std::size_t regex_word_count;
extern const std::uint32_t regex_space[];
extern const std::size_t regex_space_count;

/// Code points and their lower case, in pairs; U+0130, which becomes two, is not in it.
extern const std::uint32_t lowercase[];
extern const std::size_t lowercase_count;

/// Canonical combining classes that are not 0, `point << 8 | class`.
extern const std::uint32_t combining[];
extern const std::size_t combining_count;

// Full decompositions: code points, where their text begins, texts one behind the other; Hangul is not in it.
extern const std::uint32_t canonical_points[];
extern const std::size_t canonical_points_count;
extern const std::uint32_t canonical_starts[];
extern const std::size_t canonical_starts_count;
extern const std::uint32_t canonical_texts[];
extern const std::size_t canonical_texts_count;
extern const std::uint32_t compatible_points[];  // where the compatible one differs from the canonical one
extern const std::size_t compatible_points_count;
extern const std::uint32_t compatible_starts[];
extern const std::size_t compatible_starts_count;
extern const std::uint32_t compatible_texts[];
extern const std::size_t compatible_texts_count;

/// First code point, second one, and what they compose to, ascending.
extern const std::uint32_t compositions[];
extern const std::size_t compositions_count;

}  // namespace trtprune::text::tables
