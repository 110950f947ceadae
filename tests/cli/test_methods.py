"""``trtprune methods`` and ``models``: every method, with what it needs in words; every name ``--model`` takes."""

from __future__ import annotations

import json

from click.testing import CliRunner

from trtprune import pruning
from trtprune.checkpoint.aliases import ALIASES
from trtprune.cli import main
from trtprune.demo.assemble import PARTS
from trtprune.pruning.inputs import INPUTS


def output(*arguments: str, command: str = "methods") -> str:
    result = CliRunner().invoke(main, [command, *arguments])
    assert result.exit_code == 0
    return result.stdout


def test_json() -> None:
    rows = {row["name"]: row for row in json.loads(output("--json"))}
    assert list(rows) == pruning.names()
    for method in pruning.all_methods():
        row = rows[method.name]
        assert row["needs"] == sorted(method.needs)
        assert (row["cost"], row["merges"]) == (method.cost, method.merges)
        assert (row["positions"], row["grid_positions"]) == (method.positions_of(1), method.positions_of(3))
        assert set(row["options"]) == {option.name for option in method.options}
    assert rows["adafv"]["needs_in_words"] == [
        "the attention of a CLS token",
        "the prompt's token embeddings",
        "or, without a CLS token, the attention each patch receives from the mean query",
    ]
    assert rows["none"]["needs_in_words"] == []
    assert rows["fastv"]["inside_decoder"]


def test_text() -> None:
    text = output()
    paragraphs = [line for line in text.splitlines() if line[:1] not in ("", " ")]
    assert [line.split()[0] for line in paragraphs] == pruning.names()
    assert max(map(len, text.splitlines())) < 120
    whole = " ".join(text.split())
    for method in pruning.all_methods():
        assert method.summary in whole
        for words in method.describe_needs():
            assert words in whole
        for option in method.options:
            assert f"--option {option.name}=" in text
        if method.cost:
            assert f"costs {method.cost}" in whole


def test_every_need_has_words() -> None:
    class Everything(pruning.Method):
        name = "everything"
        summary = ""
        needs = frozenset({*INPUTS, "seed"})

        def select(self, image_features, *, keep, **inputs):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    found = Everything().describe_needs()
    assert len(found) == len(INPUTS) + 2  # and the flag for CLIP
    assert "--clip" in found[-1]


def test_models() -> None:
    found = json.loads(output("--json", command="models"))
    assert found["aliases"] == ALIASES
    # What is listed as assembled here is what can be.
    assert set(found["demos"]) == set(PARTS)
    lines = output(command="models").splitlines()
    printed = "\n".join(lines)
    listed = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line.startswith("  ")}
    for name, target in {**found["demos"], **ALIASES}.items():
        assert listed[name] == target
    for family in found["supported"]:
        assert family["architecture"] in printed
