"""docs/tensorrt.md says what the code does: its commands parse, its sums add up, its error messages exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import trtprune
from trtprune.backends.tensorrt.profiles import MAX_TOPK, default_capacity
from trtprune.cli import main
from trtprune.compiler.engine_options import ATTENTION_FORMS, DEFAULT_INPUT_LEN, FULL_ONLY, HARDWARE_COMPATIBILITY
from trtprune.reports import installer
from trtprune.reports.installer import to_install

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
SOURCE = " ".join(
    " ".join(re.sub(r'"\s*\n?\s*f?"', "", path.read_text(encoding="utf-8")).split())
    for path in sorted(Path(trtprune.__file__).parent.rglob("*.py"))
)


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("trtprune ")]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_parse(command: list[str]) -> None:
    verb = main.commands[command[1]]
    assert verb.make_context(command[1], command[2:]).params


def test_flags_exist() -> None:
    known = {name for verb in main.commands.values() for param in verb.params for name in param.opts}
    # Flags of trtprune, in code: with words behind them, or alone.
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", PAGE)) - {"--build"}  # cmake's
    assert len(named) > 20
    assert named <= known, named - known


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "installed_by", lambda: "pip")
    assert f"| `--max-input-len` | {DEFAULT_INPUT_LEN} |" in PAGE
    assert f"TensorRT's TopK returns {MAX_TOPK:,} entries at most" in PAGE
    assert set(re.findall(r"^\| `([a-z0-9-]+)`(?: \(default\))? \| .*\| .*\|$", PAGE, re.MULTILINE)) >= set(
        ATTENTION_FORMS["tensorrt"]
    )
    assert all(f"`--{name.replace('_', '-')}`" in PAGE for name in FULL_ONLY)
    assert "ampere_plus" in HARDWARE_COMPATIBILITY
    assert all(to_install(extra=name) in PAGE for name in ("tensorrt", "tensorrt-rtx"))


def test_capacities() -> None:
    """Half a MiB a slot; the table's slots are those of a build."""
    per_slot = 2 * 32 * 32 * 128 * 2
    assert f"= {per_slot:,} bytes" in PAGE
    rows = re.findall(r"^\| (all defaults|`--[^|]*`) \| (\d+) \| (\d+) MiB \|$", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for flags, slots, size in rows:
        given = dict(re.findall(r"(--[a-z-]+) (\S+?)(?=`| )", flags))
        high = int(given.get("--keep-range", "1:576").partition(":")[2])
        expected = default_capacity(
            4096, int(given.get("--max-input-len", 512)), int(given.get("--max-images", 1)), high
        )
        assert int(slots) == int(given.get("--max-seq-len", expected))
        assert int(size) * 2**20 == int(slots) * per_slot


def test_error_messages_are_those_of_the_code() -> None:
    table = PAGE[PAGE.index("## When something goes wrong") :]
    said = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(said) > 10
    ours = [text for text in said if "dedicated kernel" not in text]  # TensorRT's own words
    for text in ours:
        for piece in text.split("…"):  # where the code fills in a number or a name
            assert piece.strip() in SOURCE, f"{piece.strip()!r} of {text!r}"


def test_links() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
