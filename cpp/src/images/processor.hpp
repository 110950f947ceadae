#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <trtprune/image.hpp>
#include <vector>

/// From an image to what the vision graph and the pack step read; the twin of `trtprune.runtime.images`.
///
/// Words: an image is what the user gives, a crop is one array the vision graph reads, a patch is a token of the tower,
/// a visual token is a row the decoder reads.  A plane is a rectangle of patches that belong together: all tiles of an
/// image are one plane, an overview of the image is a plane of its own.
namespace trtprune::images {

/// Crop, row, column or newline of a token that has none.
constexpr std::int32_t no_crop = -1;

/// The array the vision graph takes for one crop, and the features it gives.
struct CropShape {
    std::int64_t height = 0;              ///< pixels
    std::int64_t width = 0;               ///< pixels
    std::array<std::int64_t, 2> patch{};  ///< (height, width) of a patch in pixels
    /// The patch, row by row, that feature 0 stands for: 0; -1 if feature 0 is the CLS token; 1 if the first patch is
    /// dropped.
    std::int64_t first_patch = 0;

    std::int64_t rows() const { return height / patch[0]; }
    std::int64_t columns() const { return width / patch[1]; }
    /// Patches of a crop.
    std::int64_t patches() const { return rows() * columns(); }
    /// Features of a crop.
    std::int64_t features() const { return patches() - first_patch; }
};

/// All that follows from an image's size alone: its crops and its N visual tokens, before pruning.
struct TokenPlan {
    std::int64_t crops = 0;  ///< arrays the vision graph reads for the image
    std::int64_t taps = 1;   ///< columns of `pack_index` and `pack_weight`
    /// [N, 3]: crop, row and column of each visual token.  Row and column count patches of the plane the crop lies on,
    /// padding included; of a plane that is shrunk they count the shrunk plane, and the crop is that of the tap with
    /// the largest weight, the first of equal ones.  (-1, -1, -1) for newline tokens; a CLS token has a crop, and -1
    /// for row and column.
    std::vector<std::int32_t> grid;
    /// [N]: place of the newline token that ends the token's line, -1 if none does; a newline token has its own place.
    std::vector<std::int32_t> newline;
    /// [N, taps]: rows of the image's crop features, flattened to [crops * features, width] and followed by the learned
    /// rows; row `crops * features` is the newline.
    std::vector<std::int32_t> pack_index;
    /// [N, taps]: weight of each row; a visual token is the weighted sum of its rows.
    std::vector<float> pack_weight;
    /// [N, 4]: left, top, right and bottom of what the token shows, in pixels of the upright image; empty where that is
    /// padding alone, NaN for newline tokens.
    std::vector<float> boxes;
    /// [N]: 1 for a token that shows padding alone, else 0.
    std::vector<std::uint8_t> padding;
    /// The crop that shows the whole image at a glance, -1 if there is none.
    std::int64_t overview = -1;
    /// Visual tokens of each span of the image in a prompt, in their order; together N.  Empty: one span.
    std::vector<std::int64_t> spans;
    /// The text that the prompt has in front of the first span, between two, and behind the last: one more than spans.
    /// Empty: none.
    std::vector<std::string> markers;

    /// Visual tokens, N.
    std::int64_t tokens() const { return static_cast<std::int64_t>(newline.size()); }
    /// `spans`, of an image with one span, too.
    std::vector<std::int64_t> span_lengths() const;
    /// `markers`, of an image without any, too.
    std::vector<std::string> span_texts() const;

    /// Whether the token is a newline token.
    bool is_newline(std::int64_t token) const { return newline[static_cast<std::size_t>(token)] == token; }

    /// Ascending: the visual tokens that a pruner chooses from, neither newline tokens nor padding.
    std::vector<std::int64_t> candidates() const;

    /// `candidates`, and the newline tokens where the build's rule `newlines` is `candidates`.
    std::vector<std::int64_t> choices(const std::string& newlines) const;

    /// The kept tokens, ascending, of a budget that leaves nothing to choose; not set if it does.
    ///
    /// All tokens of the image, newline tokens included, if the budget is no smaller than the rest; else every
    /// candidate, and padding in order up to the budget.
    ///
    /// \param newlines  The newline rule of the build.
    std::optional<std::vector<std::int64_t>> without_choice(std::int64_t keep,
                                                            const std::string& newlines = "drop") const;
};

/// Whole numbers that a packed tower reads beside the pixels.
struct IndexArray {
    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> values;
};

/// An image, ready for the vision graph.
struct Prepared {
    std::vector<float> pixel_values;  ///< [crops, 3, height, width]; of a packed tower [patches, width]
    std::int64_t crops = 0;           ///< 0 for a packed tower
    std::int64_t height = 0;          ///< pixels of a crop
    std::int64_t width = 0;           ///< pixels of a crop; of a packed tower the numbers of a patch
    std::shared_ptr<const TokenPlan> plan;
    std::int64_t patches = 0;                  ///< of a packed tower, else 0
    std::map<std::string, IndexArray> arrays;  ///< a packed tower's other inputs by name, else none
};

/// One model's image processor; never changes, so that threads may share it.
class Processor {
  public:
    virtual ~Processor() = default;

    /// What `config.json` calls it.
    virtual std::string name() const = 0;

    /// Whether the vision graph is a packed tower, which reads the patches of one image a run.
    virtual bool packed() const { return false; }

    /// What the vision graph takes for one crop; of a packed tower, one visual token.
    virtual const CropShape& shape() const = 0;

    /// The visual tokens of an image.
    ///
    /// \param height  Pixels of the upright image.
    /// \param width   Likewise.
    /// \param images  Images of the prompt it stands in; some processors make one crop of each where there are several.
    /// \throws InputError  for an image this processor makes nothing of.
    virtual TokenPlan plan(std::int64_t height, std::int64_t width, std::int64_t images = 1) const = 0;

    /// The arrays and the visual tokens of an image; errors as `plan`.
    virtual Prepared prepare(const Image& image, std::int64_t images = 1) const = 0;

    /// Pixels of the largest picture on the way from an image to its arrays, all arrays together counted as one.
    virtual std::int64_t pixels_taken(std::int64_t width, std::int64_t height, std::int64_t images = 1) const = 0;
};

/// The image processor that an engine directory names.
///
/// \param name      As the settings are written: `single`, `llava_next`, ….
/// \param settings  The processor's settings, an object.
/// \param where     File name for errors.
/// \throws EngineDirError  for an unknown name or an invalid setting.
std::unique_ptr<Processor> processor_from_settings(const std::string& name, const nlohmann::json& settings,
                                                   const std::string& where);

/// Raises InputError for an image whose work in the processor is above the limit of pixels, as one that is very narrow.
///
/// Before `prepare`; the size of the image itself is checked where it is read.
///
/// \param max_pixels  The limit; 0: `$TRTPRUNE_MAX_PIXELS`, or 64 Mi.
void check_prepared_size(const Processor& processor, const Image& image, std::int64_t max_pixels = 0);

}  // namespace trtprune::images
