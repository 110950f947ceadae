#pragma once

#include <chrono>
#include <map>
#include <string>

namespace trtprune::runtime {

/// Milliseconds spent in each stage of an answer.
class Clock {
  public:
    /// Adds the time of its life to a stage.
    class Stage {
      public:
        explicit Stage(double& ms) : ms_(ms) {}
        ~Stage() { ms_ += since(start_); }
        Stage(const Stage&) = delete;
        Stage& operator=(const Stage&) = delete;

      private:
        double& ms_;
        std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    };

    /// Counts time as `preprocess`, `vision`, `prune`, `prefill` or `decode`.
    Stage stage(const std::string& name) { return Stage(ms_[name]); }
    /// All stages and `total`, the time since the clock's creation.
    std::map<std::string, double> read() const;

  private:
    static double since(std::chrono::steady_clock::time_point start) {
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    }

    std::map<std::string, double> ms_{
        {"preprocess", 0.0}, {"vision", 0.0}, {"prune", 0.0}, {"prefill", 0.0}, {"decode", 0.0}};
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Rounded to three places behind the point.
double rounded(double value);

}  // namespace trtprune::runtime
