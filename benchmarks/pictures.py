"""The pictures of README and docs, from the results in ``results/`` and a build of the demo model.

    python benchmarks/pictures.py                     bench-demo.png, frontier.png, accuracy-scenes.png
    python benchmarks/pictures.py --build demo_out    kept-tokens.png too, from what `make demo` built

``eval_demo.py`` draws the frontier again when it has new answers; this draws everything from what is committed. Each
is saved without a palette, so that colours stay what they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from trtprune.bench.plot import draw_stages
from trtprune.eval.plot import draw_accuracy
from trtprune.eval.report import Evaluation, Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
SCENE, QUESTION = ROOT / "examples" / "scene.png", "What color is the star?"
# As of eval_demo.py: what was answered and timed with the same build.
TIMED = ("scenes", "easy-vqa")
PANELS = ("scenes", "scenes: non-salient", "scenes: salient", "easy-vqa")
# A dozen and a half lines are for the table; these show what the kinds of method do.
SHOWN = ("none", "random", "downsample", "fastervlm", "adafv", "divprune", "mmtok", "sparsevlm")


def accuracy(name: str) -> Evaluation:
    """The published rows of a test set, of the methods that are shown."""
    found = json.loads((RESULTS / f"eval-{name}.json").read_text(encoding="utf-8"))
    known = {field.name for field in dataclasses.fields(Figure)}
    figures = [
        Figure(**{"cut": 0, **{key: value for key, value in row.items() if key in known}})
        for row in found["rows"]
        if row["method"] in SHOWN
    ]
    data: dict[str, Any] = {"name": name}
    return Evaluation(found.get("command", ""), found["engine"], data, {}, tuple(figures))


def frontier() -> None:
    """docs/frontier.png, by the command itself."""
    reports = [str(RESULTS / f"eval-{name}.json") for name in TIMED]
    command = [sys.executable, "-m", "trtprune", "frontier", *reports, str(RESULTS / "bench-demo.json"), "--json", "-q"]
    command += ["-o", str(DOCS / "frontier.png"), *(word for name in PANELS for word in ("--set", name))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def kept_tokens(build: Path) -> None:
    """docs/kept-tokens.png, as ``make demo`` draws it."""
    command = [sys.executable, "-m", "trtprune", "show", str(build), "--image", str(SCENE), "--prompt", QUESTION, "-q"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "kept.png"
        command += ["--keep", "64", "--keep", "16", "--method", "adafv", "--method", "fastervlm", "-o", str(output)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        with Image.open(output) as drawn:
            drawn.convert("RGB").save(DOCS / "kept-tokens.png", optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, help="Engine directory of the demo model, for the kept tokens.")
    given = parser.parse_args()
    draw_stages(json.loads((RESULTS / "bench-demo.json").read_text(encoding="utf-8")), DOCS / "bench-demo.png")
    draw_accuracy(accuracy("scenes"), DOCS / "accuracy-scenes.png")
    frontier()
    if given.build is not None:
        kept_tokens(given.build)
    for path in sorted(DOCS.glob("*.png")):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
