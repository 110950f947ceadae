#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/session.hpp"
#include "backend/tensorrt/session.hpp"

/// The decode step: token in, logits out, with everything between on the device; the twin of `decode_graph.py`.
///
/// Token, position and write index are copied to the device at once; embedding and decoder run on buffers at fixed
/// addresses; the logits come back in one copy.  The first call runs these steps, the second records them as a CUDA
/// graph, and from then on one launch runs all: otherwise launches would take most of the time of a small model's step.
namespace trtprune::backend::tensorrt {

/// Memory of decode steps, shared by all steps, which run one after another.
struct StepBuffers {
    /// \param memory          The device's memory.
    /// \param embed, decoder  Sessions with the sizes and types of embeddings, positions and logits.
    StepBuffers(DeviceMemory& memory, const TrtSession& embed, const TrtSession& decoder);

    std::int64_t rows;                      ///< the largest number of rows of a batch
    std::int64_t axes;                      ///< axes of a position
    std::int64_t hidden;                    ///< width of an embedding
    std::int64_t vocab;                     ///< width of the logits
    bool axis_dimension;                    ///< whether position ids have a dimension of axes
    std::int64_t field;                     ///< bytes of each of the three fields of a block
    std::shared_ptr<std::byte> host_block;  ///< page-locked: ids, write index, positions
    Tensor block;                           ///< the same on the device
    Tensor logits_index;
    Tensor embeds;
    Tensor logits;
    std::shared_ptr<std::byte> host_logits;

    std::int64_t block_bytes() const { return 3 * field; }
    std::int64_t* host(std::int64_t number) {
        return reinterpret_cast<std::int64_t*>(host_block.get() + number * field);
    }
    void* device(std::int64_t number) { return static_cast<std::byte*>(block.address()) + number * field; }
};

/// The step over one cache; see `Step`.  It does not keep the cache alive.
class DecodeStep : public Step {
  public:
    /// \param record  Whether to record a CUDA graph.
    DecodeStep(TrtSession& embed, TrtSession& decoder, const TrtCache& cache, StepBuffers& buffers, bool record);

    Tensor run(const std::vector<std::int64_t>& token, const std::vector<std::int64_t>& position,
               const std::vector<std::int64_t>& write_index) override;

  private:
    void enqueue();

    Driver& driver_;
    Workspace& workspace_;
    StepBuffers& buffers_;
    std::int64_t batch_;
    bool record_;
    std::vector<std::unique_ptr<Context>> contexts_;
    int generation_;
    std::unique_ptr<Graph> graph_;
    bool warm_ = false;
};

}  // namespace trtprune::backend::tensorrt
