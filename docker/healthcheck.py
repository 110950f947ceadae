"""The images' health check: what `trtprune run` imports is there and loads, GPU or not.

Exit code 0 if trtprune's runtime and all inference libraries of this image import, else 1 and one line on stderr.
It opens no device: a probe a minute must not take GPU memory from whatever else the container does.  With an address, a
server's health instead: exit code 0 if it answers 200.
"""

import importlib
import importlib.util
import sys
import urllib.request

LIBRARIES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")


def ask(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=4) as answer:
            print(answer.read(100).decode(errors="replace"))
    except (OSError, ValueError) as error:
        print(f"{address}: {error}", file=sys.stderr)
        return 1
    return 0


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
    sys.exit(ask(sys.argv[1]) if len(sys.argv) > 1 else main())
