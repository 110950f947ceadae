"""The folder of whole answers: what it holds, and what the comparison with another runtime finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.conformance import answers
from trtprune.errors import TrtpruneError


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("answers") / "folder"
    answers.write(made, 3)
    return made


def test_the_folder_is_complete(folder: Path) -> None:
    requests = rows(folder / "requests.jsonl")
    assert [row["id"] for row in requests] == [row["id"] for row in rows(folder / "answers.jsonl")]
    families = {
        trtprune.load(folder / "directories" / name).config.model.family for name in {r["directory"] for r in requests}
    }
    assert families == {"llava", "llava-next", "llava-onevision"}
    for row in requests:
        images = [*row.get("chat", {}).get("images", ()), *(i for part in row.get("batch", ()) for i in part["images"])]
        assert images
        assert all((folder / image).is_file() for image in images)


def test_the_same_answers_again(folder: Path, tmp_path: Path) -> None:
    """Each directory opened anew, as another runtime would."""
    again = []
    for case in rows(folder / "requests.jsonl"):
        with trtprune.load(folder / "directories" / case["directory"], threads=1) as vlm:
            try:
                results = answers.answered(folder, vlm, case)
                again.append({"id": case["id"], "answers": [answers.facts(result) for result in results]})
            except TrtpruneError as error:
                again.append({"id": case["id"], "error": [type(error).__name__, error.message, error.hint]})
    path = tmp_path / "again.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in again))
    assert answers.differences(folder, path) == []
    changed = next(row for row in again if "answers" in row)
    changed["answers"][0]["token_ids"][0] += 1
    path.write_text("".join(json.dumps(row) + "\n" for row in again[:-1]))
    found = answers.differences(folder, path)
    assert len(found) == 2
    assert "token_ids is" in found[0]


@pytest.mark.slow
def test_all_checkpoints(tmp_path: Path) -> None:
    """Unpruned answers equal transformers', and few requests are refused."""
    answers.write(tmp_path / "folder", 24)
    found = rows(tmp_path / "folder" / "answers.jsonl")
    assert sum("error" in row for row in found) < len(found) / 10
