"""The images' health check: what `trtprune run` imports is there and loads, GPU or not.

Exit code 0 if trtprune's runtime and all inference libraries of this image import, else 1 and one line on stderr.
It opens no device: a probe a minute must not take GPU memory from whatever else the container does.
"""

import importlib
import importlib.util
import sys

LIBRARIES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")


def main() -> int:
    found = [name for name in LIBRARIES if importlib.util.find_spec(name)]
    if not found:
        print(f"none of {', '.join(LIBRARIES)} is installed", file=sys.stderr)
        return 1
    for name in ("trtprune.runtime.vlm", *found):
        try:
            importlib.import_module(name)
        except Exception as error:  # a library that does not load can raise anything
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
    print(f"trtprune, {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
