"""Questions for the Python runtime and for ``cpp/tests/drivers/vlm.cpp``, and what both must say alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trtprune.errors import TrtpruneError
from trtprune.runtime import Request, Vlm

CODES = {"InputError": 1, "BudgetError": 2, "EngineDirError": 3, "BackendError": 4}
MEASURED = ("timings_ms", "time_to_first_token_ms", "tokens_per_second")
"""Members of a result that differ from run to run."""


class Images:
    """Images as files of plain RGB bytes.

    Args:
        folder: Their place.
        images: Each under a name of its own.
    """

    def __init__(self, folder: Path, images: Mapping[str, Image.Image]) -> None:
        self.images = dict(images)
        self._files: dict[str, list[Any]] = {}
        for name, image in images.items():
            path = folder / f"{name}.rgb"
            path.write_bytes(image.convert("RGB").tobytes())
            self._files[name] = [str(path), image.width, image.height]

    def files(self, names: Sequence[str]) -> list[list[Any]]:
        """What the driver reads."""
        return [self._files[name] for name in names]

    def pictures(self, names: Sequence[str]) -> list[Image.Image]:
        """The same in Python."""
        return [self.images[name] for name in names]


def for_driver(call: Mapping[str, Any], images: Images) -> dict[str, Any]:
    """A call with its images as files."""
    asked = dict(call)
    if "images" in asked:
        asked["images"] = images.files(asked["images"])
    if "requests" in asked:
        asked["requests"] = [for_driver(request, images) for request in asked["requests"]]
    return asked


def in_python(vlm: Vlm, call: Mapping[str, Any], images: Images) -> Any:
    """The same call in Python: results without what is measured, or the error."""
    options = call.get("options", {})
    try:
        if call["kind"] == "chat":
            return _chat(vlm, call, images)
        if call["kind"] == "generate":
            return bare(vlm.generate(images.pictures(call["images"]), call["prompt"], **options).to_json())
        requests = [Request(**{**row, "images": images.pictures(row["images"])}) for row in call["requests"]]
        return [bare(result.to_json()) for result in vlm.generate_batch(requests, **options)]
    except TrtpruneError as error:
        return _error(error)


def _chat(vlm: Vlm, call: Mapping[str, Any], images: Images) -> list[Any]:
    talk, results = vlm.chat(images.pictures(call["images"]), system=call.get("system")), list[Any]()
    for turn in call["turns"]:
        try:
            options = turn.get("options", {})
            answer = talk.ask(turn["prompt"], repick=turn.get("repick", True), **options)
            results.append(bare(answer.to_json()))
        except TrtpruneError as error:
            results.append(_error(error))
    return results


def _error(error: TrtpruneError) -> dict[str, Any]:
    return {"error": error.message, "hint": error.hint or "", "code": CODES[type(error).__name__]}


def bare(result: Any) -> Any:
    """A driver's result without what is measured and without the pieces."""
    if isinstance(result, list):
        return [bare(item) for item in result]
    return {name: value for name, value in result.items() if name not in (*MEASURED, "pieces")}


def compare(
    driver: Callable[..., list[Any]],
    vlm: Vlm,
    calls: Sequence[Mapping[str, Any]],
    images: Images,
    **load: Any,
) -> list[Any]:
    """Asks both runtimes and fails where they differ.

    Args:
        driver: The program.
        vlm: The model in Python.
        calls: What to ask.
        images: The images that the calls name.
        load: Settings of loading in C++.

    Returns:
        The results of the C++ runtime, whole.
    """
    line = {
        "directory": str(vlm.config.root),
        "load": {"threads": 1, **load},
        "calls": [for_driver(call, images) for call in calls],
    }
    (answers,) = driver([line])
    assert isinstance(answers, list), answers
    for call, answer in zip(calls, answers, strict=True):
        assert bare(answer) == in_python(vlm, call, images), call
    return answers
