#include <cstdlib>

/// Linux builds of ONNX Runtime 1.31 write an identifier below the home directory and report their use over the
/// network, unless the environment says otherwise before they are loaded; what it says already stays.
///
/// Done as this library is loaded: a program has one thread then, which setenv needs.  The name is for linkers, which
/// take a file out of a static library only if something asks for it.
extern "C" __attribute__((constructor)) void trtprune_no_reports() {
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
}
