"""Two runs of ``trtprune eval`` on the same questions: how many answers differ, and how many are right in each.

    python benchmarks/compare_answers.py ONE/results.jsonl OTHER/results.jsonl [--json FILE]

For what changes answers without changing the method: another provider, precision or weight dtype.  Questions, methods
and budgets that only one of them has are left out.  Behind docs: results/openvino-bf16-answers.json is

    trtprune eval OUT --data scenes --methods adafv --keep 64 --limit 500 --seed 0 -o one
    trtprune eval OVOUT --data scenes --methods adafv --keep 64 --limit 500 --seed 0 -o other \\
        --provider-option precision=bf16

with ``OUT`` the demo model as built by default and ``OVOUT`` built with ``--provider openvino``.
results/openvino-bf16-signs.json holds the published answers (``xz -dk results/answers-signs.jsonl.xz``) against

    trtprune eval SIGNS --data signs --provider cpu --methods sparsevlm,fastv,pyramiddrop:first=2 --keep 128 \\
        --limit 200 --seed 0 -o one

with ``SIGNS`` the model ``demo-signs`` as in docs/eval-demo.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    """Answers by method, budget and question."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return {(row["method"], row["keep"], row["id"]): row for row in rows if not row.get("control")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    one, other = read(given.one), read(given.other)
    both = [key for key in one if key in other]
    rows = []
    for method, keep in dict.fromkeys((method, keep) for method, keep, _ in both):
        keys = [key for key in both if key[:2] == (method, keep)]
        rows.append(
            {
                "method": method, "keep": keep, "questions": len(keys),
                "answers_differ": sum(one[key]["answer"] != other[key]["answer"] for key in keys),
                "right": [sum(answers[key]["score"] for key in keys) for answers in (one, other)],
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]))
    if given.json:
        given.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
