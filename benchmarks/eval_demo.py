"""Every method on the demo models' test sets: tables of docs/ and the picture of the README.

    python benchmarks/eval_demo.py --scenes OUT --easy-vqa OV --signs SIGNS --folder DIR [--part 1/2] [--minutes 90]
    python benchmarks/eval_demo.py --signs SIGNS --folder DIR [--so-far] [--published]

Engine directories, with any method: ``OUT`` of ``demo``, ``OV`` of ``demo`` built with ``--provider openvino``,
``SIGNS`` of ``demo-signs`` built so; what is not given is not asked.  With OpenVINO the products are in bfloat16, which
is faster.  The answers go to ``DIR`` as they come (hours a set; what was ended goes on), then results/eval-SET.json,
results/claim.json, results/frontier.json and docs/frontier.png are written from what is there; what they say of other
sets stays.  Afterwards: ``python benchmarks/tables.py``.

``--part 1/2`` asks one of two shares of the pictures and writes nothing else, for processes side by side; the same
command without it comes last.  The answers of ``PUBLISHED`` sets go to results/answers-SET.jsonl.xz, too.
``--published`` begins with those instead of nothing; with ``--so-far`` the tables come from them in a minute, without
asking, and a row of which the folder has fewer answers than results/eval-SET.json counts stays as it is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtprune import pruning
from trtprune.engine_dir import open_engine_dir
from trtprune.eval import evaluate
from trtprune.eval.loaders import load_data
from trtprune.eval.parts import ANSWERS, answer_files
from trtprune.eval.planning import UNPRUNED
from trtprune.reports.statistics import paired
from trtprune.variants import Variant

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SETS = ("scenes", "easy-vqa", "signs")
COMMAND = "python benchmarks/eval_demo.py --scenes OUT --easy-vqa OV --signs SIGNS --folder DIR"
ROUNDING = {"easy-vqa": {"precision": "bf16"}, "signs": {"precision": "bf16"}}
"""Options of the provider."""
DIRECTORIES = {"scenes": "OUT", "easy-vqa": "OV", "signs": "SIGNS"}
"""What the engine directories are called in commands."""
PUBLISHED = ("easy-vqa", "signs")
"""Sets whose answers are committed."""
TIMED = ("scenes", "easy-vqa")
"""Sets of the model that results/bench-demo.json is of."""
QUESTIONS = 2000
KEEPS = (192, 128, 64, 32, 16)
INSIDE_KEEPS = (192, 128, 64)
"""Averages over the layers that methods inside a 30-layer decoder can reach at the layers they are known for."""
INSIDE = ("sparsevlm", "fastv", "pyramiddrop:first=2")
FORMS = {"adafv": "adafv:mode=official", "sparsevlm": "sparsevlm:layers=published"}
"""Methods whose default is not what the authors' code does, and that code's own form."""
BESIDE_FORMS = {"adafv": ("fastervlm", "mmtok")}
"""What official forms are held against beside our own."""
NEED_CLIP = ("cdpruner", "trim")
"""The demo model's tower is DINOv2."""
CONTROLS = {"methods": "adafv", "keeps": [64], "limit": 200, "controls": True}
TEXT_AWARE = ("adafv", "adafv mode=official", "zspaprune", "mmtok")
SALIENCY = ("fastervlm", "visionzip", "vispruner")
CLAIM_KEEPS = (64, 32, 16)
CLAIM_SETS = ("scenes", "signs")
CLAIM_GROUPS = ("non-salient", "salient")
PANELS = ("scenes", "scenes: non-salient", "scenes: salient", "easy-vqa")


def before_the_decoder() -> list[str]:
    """All methods that prune there, but for those the demo model cannot serve."""
    inside = [name.partition(":")[0] for name in INSIDE]
    return [name for name in pruning.names() if name not in ("none", *NEED_CLIP, *inside)]


def asked() -> tuple[tuple[Sequence[str], Sequence[int]], ...]:
    """Methods with their budgets; a method's official form comes right behind it."""
    before, inside = (
        [form for name in names for form in (name, FORMS.get(name)) if form] for names in (before_the_decoder(), INSIDE)
    )
    return (before, KEEPS), (inside, INSIDE_KEEPS)


def ask_part(out: Path, name: str, folder: Path, threads: int | None, part: str) -> None:
    """Asks what is missing of a share of a set."""
    settings: dict[str, Any] = {"threads": threads, "provider_options": ROUNDING.get(name, {}), "report": say}
    for methods, keeps in asked():
        chosen = ",".join(methods)
        evaluate(out, name, folder / name, methods=chosen, keeps=keeps, limit=QUESTIONS, part=part, **settings)


def ask(out: Path, name: str, folder: Path, threads: int | None, so_far: bool) -> None:
    """Asks what is missing of a set and writes its results file."""
    options = ROUNDING.get(name, {})
    settings: dict[str, Any] = {"plot": False, "threads": threads, "provider_options": options, "report": say}
    found: dict[str, Any] = {}
    for methods, keeps in asked():
        given = f"--methods {','.join(methods)} --keep {','.join(map(str, keeps))}"
        given += "".join(f" --provider-option {key}={value}" for key, value in options.items())
        command = f"trtprune eval {DIRECTORIES[name]} --data {name} {given} --limit {QUESTIONS} --seed 0"
        part = evaluate(
            out, name, folder / name, methods=",".join(methods), keeps=keeps, limit=QUESTIONS, so_far=so_far,
            command=command, **settings,
        ).to_json()  # fmt: skip
        rows = [bare(row) for row in part["rows"] if not found or row["method"] != "none"]
        if not found:
            found = part | {"command": "python benchmarks/eval_demo.py", "commands": [], "rows": [], "notes": []}
        if any(row["method"] != "none" for row in rows):
            found["commands"].append(command)
        found["rows"] += rows
        found["notes"] += part["notes"]
    blind = folder / f"{name}-controls"
    if blind.exists() or not so_far:
        controls = evaluate(out, name, blind, so_far=so_far, **CONTROLS, **settings).to_json()
        wanted = ("set", "method", "keep", "n", "accuracy", "controls")
        found["controls"] = [{key: row[key] for key in wanted} for row in controls["rows"]]
    elif (RESULTS / f"eval-{name}.json").exists():
        found["controls"] = json.loads((RESULTS / f"eval-{name}.json").read_text(encoding="utf-8")).get("controls", [])
    if so_far:
        found["rows"] = fuller(name, found["rows"])
        found["engine"]["build_digest"] = gave_published(name) or found["engine"]["build_digest"]
    write(f"eval-{name}.json", found)


def fuller(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each row that one just counted or the one among the results, whichever is of more questions."""
    path = RESULTS / f"eval-{name}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    found = {(row["set"], row["method"], row["keep"]): row for row in before}
    for row in rows:
        key = row["set"], row["method"], row["keep"]
        if key not in found or row["n"] >= found[key]["n"]:
            found[key] = row
    names = [UNPRUNED, *(Variant.parse(method).label for methods, _ in asked() for method in methods)]
    sets = list(dict.fromkeys(part for part, *_ in found))
    return [found[part, method, keep] for part in sets for method in names for keep in keeps_of(found, part, method)]


def keeps_of(found: dict[tuple[str, str, int], Any], part: str, method: str) -> list[int]:
    """Budgets of a method's rows, falling."""
    return sorted((keep for s, m, keep in found if (s, m) == (part, method)), reverse=True)


def bare(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a report without its examples, which would be most of the file."""
    return {
        key: value for key, value in row.items() if not key.endswith("_examples") and key not in ("controls", "yes_no")
    }


def answers(folder: Path) -> tuple[bytes, list[bytes]]:
    """The first line of files of answers, and all answers, each once."""
    head = b""
    found: dict[Any, bytes] = {}
    for path in answer_files(folder):
        head, *lines = path.read_bytes().splitlines(keepends=True)
        for line in lines:
            if line.endswith(b"\n"):
                one = json.loads(line)
                found.setdefault((one["id"], one["method"], one["keep"]), line)
    return head, list(found.values())


def publish(folder: Path, name: str) -> None:
    """Writes a set's answers among the results, in the order of questions, whichever was asked first."""
    head, whole = answers(folder / name)
    whole.sort(key=lambda line: json.loads(line)["id"])
    (RESULTS / f"answers-{name}.jsonl.xz").write_bytes(lzma.compress(head + b"".join(whole), preset=9))
    say("wrote", f"answers-{name}.jsonl.xz, {len(whole):,} answers")


def begin_with_published(out: Path, folder: Path, name: str, so_far: bool) -> None:
    """Puts a set's committed answers where they are gone on with, unless there are some already.

    Only the build that gave them can go on with them; counting them is another matter (``so_far``): then they are taken
    for those of ``out``, and the results say whose they are.
    """
    path, packed = folder / name / ANSWERS, RESULTS / f"answers-{name}.jsonl.xz"
    if packed.exists() and not path.exists():
        head, rest = lzma.decompress(packed.read_bytes()).split(b"\n", 1)
        if so_far:
            first = json.loads(head)
            first["fingerprint"]["engine"] = open_engine_dir(out).build_digest
            head = json.dumps(first).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(head + b"\n" + rest)


def gave_published(name: str) -> str | None:
    """Digest of the build that gave a set's committed answers."""
    packed = RESULTS / f"answers-{name}.jsonl.xz"
    if not packed.exists():
        return None
    with lzma.open(packed) as file:
        return str(json.loads(file.readline())["fingerprint"]["engine"])


def claim(folder: Path, sets: Sequence[str]) -> None:
    """Text-aware methods against those that only look at the picture, and official forms against the defaults here."""
    path = RESULTS / "claim.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    compared_before = {comparison(row): row for row in before.get("rows", [])}
    forms_before = {comparison(row): row for row in before.get("forms", [])}
    for name in sets:
        rows = {row.id: row for row in load_data(name, limit=QUESTIONS, seed=0).rows}
        marks = marks_of(folder, name)
        groups = list(dict.fromkeys(row.group for row in rows.values()))
        if name in CLAIM_SETS:
            for case in itertools.product(CLAIM_KEEPS, TEXT_AWARE, SALIENCY, CLAIM_GROUPS):
                keep_fuller(compared_before, compared(name, rows, marks, *case))
        for (own, form), keep, group in itertools.product(FORMS.items(), KEEPS, ("all", *groups)):
            for other in (own, *BESIDE_FORMS.get(own, ())):
                row = compared(name, rows, marks, keep, Variant.parse(form).label, other, group)
                keep_fuller(forms_before, row)
    command = f"{COMMAND} ({QUESTIONS} questions, seed 0)"
    order = [*SETS]
    found = [
        sorted(rows.values(), key=lambda row: (order.index(row["data"]), -row["keep"]))
        for rows in (compared_before, forms_before)
    ]
    write("claim.json", {"command": command, "rows": found[0], "forms": found[1]})


def comparison(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row compares."""
    return tuple(row[key] for key in ("data", "keep", "text_aware", "saliency", "set"))


def keep_fuller(found: dict[tuple[Any, ...], dict[str, Any]], row: dict[str, Any]) -> None:
    """Puts a row in its place, unless that holds one of more questions."""
    key = comparison(row)
    if row["n"] and row["n"] >= found.get(key, row)["n"]:
        found[key] = row


def marks_of(folder: Path, name: str) -> dict[tuple[str, int], dict[str, float]]:
    """Of each method and budget, the mark of each question of a set."""
    marks: dict[tuple[str, int], dict[str, float]] = {}
    for line in answers(folder / name)[1]:
        one = json.loads(line)
        marks.setdefault((one["method"], one["keep"]), {})[one["id"]] = one["score"]
    return marks


def compared(
    name: str,
    rows: dict[str, Any],
    marks: dict[tuple[str, int], dict[str, float]],
    keep: int,
    one: str,
    other: str,
    group: str,
) -> dict[str, Any]:
    """A method less another one, question by question, on a group of a set's questions ("all": on all of them)."""
    mine, theirs = marks.get((one, keep), {}), marks.get((other, keep), {})
    ids = [key for key in rows if key in mine and key in theirs and group in ("all", rows[key].group)]
    row: dict[str, Any] = {
        "data": name,
        "keep": keep,
        "text_aware": one,
        "saliency": other,
        "set": group,
        "n": len(ids),
    }
    if not ids:
        return row
    pair = paired([theirs[i] for i in ids], [mine[i] for i in ids], clusters=[rows[i].picture_key for i in ids])
    return row | {
        "text_aware_accuracy": sum(mine[i] for i in ids) / len(ids),
        "saliency_accuracy": sum(theirs[i] for i in ids) / len(ids),
        "difference": pair.difference, "low": pair.low, "high": pair.high,
        "better": pair.repaired, "worse": pair.broken, "mcnemar_p": pair.p,
    }  # fmt: skip


def say(what: str, message: str) -> None:
    print(f"{what:9} {message}", file=sys.stderr)


def write(name: str, data: dict[str, Any]) -> None:
    (RESULTS / name).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    say("wrote", name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, directory in DIRECTORIES.items():
        parser.add_argument(f"--{name}", type=Path, metavar=directory, help=f"engine directory that {name} is asked of")
    parser.add_argument("--folder", type=Path, required=True, help="of the answers")
    parser.add_argument("--minutes", type=int, help="stop asking after so long, as with Ctrl-C")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--part", metavar="K/N", help="ask the K-th of N shares, and write no results")
    parser.add_argument("--so-far", action="store_true", help="ask nothing")
    parser.add_argument("--published", action="store_true", help="begin with the committed answers")
    given = parser.parse_args()
    if given.minutes:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(60 * given.minutes)
    directories = {name: getattr(given, name.replace("-", "_")) for name in SETS}
    sets = [name for name in SETS if directories[name]]
    if not sets:
        parser.error(f"nothing to ask: give one of {', '.join(f'--{name}' for name in SETS)}")
    for name in sets:
        if given.part:
            ask_part(directories[name], name, given.folder, given.threads, given.part)
            continue
        if given.published:
            begin_with_published(directories[name], given.folder, name, given.so_far)
        ask(directories[name], name, given.folder, given.threads, given.so_far)
        if given.published and given.so_far:
            continue  # what was counted is what is published
        if name in PUBLISHED:
            publish(given.folder, name)
    if given.part:
        return 0
    claim(given.folder, sets)
    reports = [str(RESULTS / f"eval-{name}.json") for name in TIMED]
    command = [sys.executable, "-m", "trtprune", "frontier", *reports, str(RESULTS / "bench-demo.json"), "--json"]
    command += ["-o", str(ROOT / "docs" / "frontier.png"), *(word for name in PANELS for word in ("--set", name))]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    words = {name: {"words": part["words"]} for name, part in json.loads(found.stdout)["sets"].items()}
    write("frontier.json", {"command": "python benchmarks/eval_demo.py", "sets": words})
    return 0


if __name__ == "__main__":
    sys.exit(main())
