"""The usual sets in their downloaded form: VQAv2, GQA, POPE, TextVQA, ScienceQA.

Each reader yields (entry number, row or reason); nothing is fetched.  The request for the answer's form is the one at
the end of the question in lmms-eval's task, which is also LLaVA's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from trtprune.errors import InputError
from trtprune.eval.rows import MAX_FILE_BYTES, MAX_LINE_BYTES, MAX_ROWS, Row
from trtprune.eval.scoring import LETTERS

__all__ = ["LAYOUTS", "Entries", "SetLayout"]

Entries: TypeAlias = Iterable[tuple[int, "Row | str"]]

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
COCO = "http://images.cocodataset.org/zips/val2014.zip"


@dataclass(frozen=True)
class SetLayout:
    """A set on disk.

    Attributes:
        read: Function of (folder, request for the answer's form, folder of the images or None) to entries.
        metric: Its metric.
        suffix: The request for the answer's form.
        source: The place of the download.
        files: The required files of the folder, for messages and help.
    """

    read: Callable[[Path, str, Path | None], Entries]
    metric: str
    suffix: str
    source: str
    files: str


class _Folder:
    """Finds a set's files; every error names the place of the download."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        self.layout = LAYOUTS[name]
        if not root.is_dir():
            raise self.error("no such folder")

    def error(self, what: str) -> InputError:
        hint = f"it takes {self.layout.files}; from {self.layout.source}"
        return InputError(f"--data {self.name}:{self.root}: {what}", hint=hint)

    def find(self, *names: str) -> Path:
        """The first of ``names`` in the folder or in a folder below."""
        for name in names:
            for pattern in (name, f"*/{name}"):
                found = sorted(self.root.glob(pattern))
                if found:
                    return found[0]
        raise self.error(f"no {' or '.join(names)} in it")

    def json(self, path: Path) -> Any:
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise self.error(f"{path.name} is larger than {MAX_FILE_BYTES} bytes")
            return json.loads(path.read_bytes())
        except OSError as error:
            raise self.error(f"{path.name} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise self.error(f"{path.name} is not JSON: {str(error)[:100]}") from None

    def list_in(self, path: Path, key: str) -> list[Any]:
        """The list under ``key`` of a JSON object."""
        table = self.json(path)
        items = table.get(key) if isinstance(table, Mapping) else None
        if not isinstance(items, list) or len(items) > MAX_ROWS:
            raise self.error(f"{path.name} has no list {key!r} of up to {MAX_ROWS} entries")
        return items

    def mapping(self, path: Path) -> Mapping[str, Any]:
        table = self.json(path)
        if not isinstance(table, Mapping) or len(table) > MAX_ROWS:
            raise self.error(f"{path.name} is no JSON object of up to {MAX_ROWS} entries")
        return table

    def pictures(self, given: Path | None, folders: Sequence[str], some: Iterable[str]) -> Path:
        """The folder with at least one of the images ``some``."""
        some = list(some)[:50]
        candidates = [given] if given is not None else [self.root / folder for folder in folders]
        for folder in candidates:
            if any((folder / name).is_file() for name in some):
                return folder
        looked = " or ".join(map(str, candidates if given else folders))
        raise self.error(f"no {some[0] if some else 'picture'} in {looked}")


def _checked(entries: Iterable[Any], make: Callable[[Any], Row]) -> Iterator[tuple[int, Row | str]]:
    for number, entry in enumerate(entries, 1):
        try:
            yield number, make(entry)
        except KeyError as error:
            yield number, f"has no {error.args[0]!r}"
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            yield number, f"is not of the set's form: {str(error)[:100]}"


def _name(text: Any) -> str:
    """A file name from a file: it must not lead to another folder."""
    name = str(text)
    if not name or Path(name).name != name:
        raise ValueError(f"{name[:50]!r} is no file name")
    return name


def _texts(items: Iterable[Any]) -> tuple[str, ...]:
    texts = tuple(items)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("an answer that is not text")
    return texts


def _names(rows: Iterable[Any], make: Callable[[Any], str]) -> Iterator[str]:
    for row in rows:
        try:
            yield make(row)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue


def _vqav2(root: Path, suffix: str, images: Path | None) -> Entries:
    folder = _Folder("vqav2", root)
    path = folder.find("v2_OpenEnded_mscoco_val2014_questions.json", "v2_OpenEnded_mscoco_*_questions.json")
    split = path.name.removeprefix("v2_OpenEnded_mscoco_").removesuffix("_questions.json")
    questions = folder.list_in(path, "questions")
    people: dict[Any, Mapping[str, Any]] = {}
    for entry in folder.list_in(folder.find(f"v2_mscoco_{split}_annotations.json"), "annotations"):
        if isinstance(entry, Mapping) and isinstance(entry.get("question_id"), int):
            people[entry["question_id"]] = entry

    def picture(entry: Any) -> str:
        return f"COCO_{split}_{int(entry['image_id']):012d}.jpg"

    place = folder.pictures(images, (split, f"images/{split}", "images", "."), _names(questions, picture))

    def make(entry: Any) -> Row:
        told = people.get(entry["question_id"], {"answers": []})
        answers = _texts(answer["answer"] for answer in told["answers"])
        group = str(told.get("answer_type", ""))
        return Row(str(entry["question_id"]), place / picture(entry), entry["question"] + suffix, answers, group)

    return _checked(questions, make)


def _gqa(root: Path, suffix: str, images: Path | None) -> Entries:
    folder = _Folder("gqa", root)
    questions = folder.mapping(folder.find("testdev_balanced_questions.json", "val_balanced_questions.json"))

    def picture(entry: Any) -> str:
        return _name(f"{entry['imageId']}.jpg")

    place = folder.pictures(images, ("images", "."), _names(questions.values(), picture))

    def make(item: tuple[str, Any]) -> Row:
        key, entry = item
        types = entry.get("types")
        group = str(types.get("structural") or "") if isinstance(types, Mapping) else ""
        return Row(key, place / picture(entry), entry["question"] + suffix, _texts([entry["answer"]]), group)

    return _checked(questions.items(), make)


def _pope(root: Path, suffix: str, images: Path | None) -> Entries:
    folder = _Folder("pope", root)
    lines: list[tuple[str, Any]] = []
    for part in ("random", "popular", "adversarial"):
        path = folder.find(f"coco_pope_{part}.json")
        try:
            with path.open("rb") as stream:
                for line in stream:
                    lines.append((part, json.loads(line) if len(line) <= MAX_LINE_BYTES else None))
                    if len(lines) > MAX_ROWS:
                        raise folder.error(f"more than {MAX_ROWS} rows")
        except OSError as error:
            raise folder.error(f"{path.name} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise folder.error(f"{path.name} is not JSON, one object a line: {str(error)[:100]}") from None
    names = _names(lines, lambda line: _name(line[1]["image"]))
    place = folder.pictures(images, ("val2014", "images/val2014", "images", "."), names)

    def make(item: tuple[str, Any]) -> Row:
        part, entry = item
        question = entry["text"].strip() + suffix
        # Each of the three parts counts its questions from 1.
        return Row(
            f"{part}-{entry['question_id']}", place / _name(entry["image"]), question, _texts([entry["label"]]), part
        )

    return _checked(lines, make)


def _textvqa(root: Path, suffix: str, images: Path | None) -> Entries:
    folder = _Folder("textvqa", root)
    entries = folder.list_in(folder.find("TextVQA_0.5.1_val.json"), "data")

    def picture(entry: Any) -> str:
        return _name(f"{entry['image_id']}.jpg")

    place = folder.pictures(images, ("train_images", "images/train_images", "images", "."), _names(entries, picture))

    def make(entry: Any) -> Row:
        # lmms-eval's task writes the question as a sentence: an upper-case first letter, lower case for the rest.
        question = entry["question"].capitalize() + suffix
        return Row(str(entry["question_id"]), place / picture(entry), question, _texts(entry["answers"]))

    return _checked(entries, make)


def _scienceqa(root: Path, suffix: str, images: Path | None) -> Entries:
    folder = _Folder("scienceqa", root)
    problems = folder.mapping(folder.find("problems.json"))
    chosen = folder.list_in(folder.find("pid_splits.json"), "test")

    def picture(key: str) -> str:
        return f"{_name(key)}/{_name(problems[key]['image'])}"

    def has_picture(key: Any) -> bool:
        # Questions without an image, half of the set, are not for a vision model.  make() reports broken entries.
        entry = problems.get(key) if isinstance(key, str) else None
        return not isinstance(entry, Mapping) or bool(entry.get("image"))

    chosen = [key for key in chosen if has_picture(key)]
    place = folder.pictures(images, ("images/test", "test", "images", "."), _names(chosen, picture))

    def make(key: Any) -> Row:
        entry = problems[key]
        choices = _texts(entry["choices"])
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
        context = f"Context: {entry['hint']}\n" if entry.get("hint") else ""
        question = context + entry["question"] + "\n" + "\n".join(lines) + suffix
        answer = LETTERS[: len(choices)][entry["answer"]] if entry["answer"] >= 0 else ""
        return Row(key, place / picture(key), question, (answer,), str(entry.get("subject", "")), choices)

    return _checked(chosen, make)


LAYOUTS: dict[str, SetLayout] = {
    "vqav2": SetLayout(
        _vqav2,
        "vqa",
        SHORT,
        "https://visualqa.org/download.html",
        "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json and val2014/COCO_val2014_*.jpg",
    ),
    "gqa": SetLayout(
        _gqa,
        "gqa",
        SHORT,
        "https://cs.stanford.edu/people/dorarad/gqa/download.html",
        "testdev_balanced_questions.json and images/*.jpg",
    ),
    "pope": SetLayout(
        _pope,
        "pope",
        SHORT,
        f"https://github.com/RUCAIBox/POPE (output/coco) and {COCO}",
        "coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json and val2014/COCO_val2014_*.jpg",
    ),
    "textvqa": SetLayout(
        _textvqa,
        "textvqa",
        SHORT,
        "https://textvqa.org/dataset/",
        "TextVQA_0.5.1_val.json and train_images/*.jpg",
    ),
    "scienceqa": SetLayout(
        _scienceqa,
        "letter",
        LETTER,
        "https://github.com/lupantech/ScienceQA",
        "problems.json, pid_splits.json and images/test/*/image.png",
    ),
}
