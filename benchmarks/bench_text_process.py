"""What the second process for templates and tokenizers costs: its start, and each question.

    python benchmarks/bench_text_process.py OUT [--rounds 500] [--json FILE]

``OUT`` is an engine directory.  A question is encoded by turns through the process and in this one
(``TRTPRUNE_TEXT_PROCESS=off``); the start is that of the process and of the model's files in it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from _machine import machine, summary, write_json

from trtprune.engine_dir import open_engine_dir
from trtprune.runtime.prompt import PromptEncoder
from trtprune.runtime.texts import text_files
from trtprune.text.process import _PROCESS, OFF
from trtprune.text.template import Turn

QUESTION = [Turn("user", "What is on the table, left of the plate?", 1)]
STARTS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    made = open_engine_dir(given.directory)
    files = text_files(made)

    def encoder() -> tuple[PromptEncoder, float]:
        begin = time.perf_counter()
        opened = PromptEncoder(files, made.model.image_token, made.model.image_token_id)
        return opened, 1000 * (time.perf_counter() - begin)

    starts: dict[str, list[float]] = {"process": [], "program": []}
    for _ in range(STARTS):
        _PROCESS.end()
        os.environ.pop(OFF, None)
        through, ms = encoder()
        starts["process"].append(ms)
        os.environ[OFF] = "off"
        inside, ms = encoder()
        starts["program"].append(ms)
    asked: dict[str, list[float]] = {"process": [], "program": []}
    for _ in range(given.rounds):
        for name, opened in (("process", through), ("program", inside)):
            os.environ[OFF] = "off" if name == "program" else ""
            begin = time.perf_counter()
            opened.encode(QUESTION)
            asked[name].append(1000 * (time.perf_counter() - begin))
    result = {
        "machine": machine(),
        "open_ms": {name: summary(values) for name, values in starts.items()},
        "encode_ms": {name: summary(values) for name, values in asked.items()},
    }
    print(json.dumps(result, indent=2))
    if given.json is not None:
        write_json(given.json, result)


if __name__ == "__main__":
    main()
