"""``docker/cpp.Dockerfile``: linted, what it copies exists, and what runs in it has no Python.  No engine is needed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker/cpp.Dockerfile"
TEXT = re.sub(r"\\\n\s*", " ", "\n".join(line for line in FILE.read_text().splitlines() if not line.startswith("#")))
BUILD, RUN = TEXT.rsplit("\nFROM ", 1)


def test_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, FILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "hadolint ignore" not in TEXT


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored, *kept = [
        line for line in Path(f"{FILE}.dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert ignored == "*"
    copies = [shlex.split(text) for text in re.findall(r"^COPY (.*)$", BUILD, re.MULTILINE)]
    assert copies
    for source, target in copies:
        assert (ROOT / source).exists()
        assert f"!{source}" in kept
        assert source == target, "cpp/ finds the version and the script where they are in a checkout"


def test_the_image_that_runs() -> None:
    """No Python and no compiler; not root; all from the installed package."""
    (packages,) = re.findall(r"apt-get install -y --no-install-recommends (.*?)&&", RUN)
    assert {word.partition("=")[0] for word in packages.split()} == {
        "libjpeg62-turbo",
        "libpng16-16",
        "libstdc++6",
        "libwebp7",
    }
    assert re.search(r"^USER 10001:10001$", RUN, re.MULTILINE)
    assert RUN.rstrip().endswith('ENTRYPOINT ["answer"]')
    variable = re.search(r"TRTPRUNE_ONNXRUNTIME=(\S+)", RUN)
    assert variable
    assert variable[1] == "/opt/onnxruntime/libonnxruntime.so.1"
    assert "COPY --from=build /dependencies/onnxruntime-library/ /opt/onnxruntime/" in RUN
    assert "-DCMAKE_PREFIX_PATH=/opt/trtprune" in BUILD
