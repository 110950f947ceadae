"""Single functions out of checkouts of the pruning methods' own repositories, run as they stand.

Nothing of those repositories is part of this project. A function is taken from the file in the user's checkout, without
importing the file: its packages (an old transformers, LLaVA itself) are not needed, and nothing else of it runs. The
file must be the one whose SHA-256 is listed here.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

LLAVA = "llava/model/llava_arch.py"
FILES: dict[tuple[str, str], str] = {
    (
        "AdaV",
        "llava/model/language_model/llava_llama.py",
    ): "7aa3670c66257253348515924713feb99db86d761108ca1acb45a0a9b429d260",
    ("AdaV", LLAVA): "cf537730ee983e64166cd9b507e0f7c2811e72d9acbdb2f7a8bccb194cc164f3",
    ("CDPruner", LLAVA): "1e011ec547bb20dd28cb8a9adb8a4987a2ad8b476e7ce51d5bd3e0bba71c848f",
    ("FasterVLM", LLAVA): "d2570d49f30e4dafad447814f59a9209bd124061ee117f3125e212cd49885964",
    ("HiPrune", "LLaVA/" + LLAVA): "1da2f348cba5142c47f8ff4b65cff790ab753ff10d5e64afe481ad313fdaa397",
    ("MMTok", "mmtok/core/mmtok_core.py"): "fb891cda55999601b982ad0ee30cacea43b79a4fd5abdedc80f70a326193c3fa",
    ("MMTok", "mmtok/core/semantic_selector.py"): "1f2f9aac0e2d5b908683bf8543053655fbf9fedc549f136442a93ff3b1b39b82",
    ("MMTok", "mmtok/llava/llava_arch_mmtok.py"): "b6b9a11cd53e9c4ea5e2fd906405ef1ff08b911ab32b596db76fd76a7e49d4cc",
    ("VisPruner", LLAVA): "5559d52a05fd77e39aa82cfe4e05835adea787604fdab8ad4588291bb6e843b2",
    ("VisionZip", "visionzip/clip_encoder.py"): "d549cc89e53076267c27a1dbbc6d7b3f1110e45fe8333f4d50633d55c1782dee",
    ("VisionZip", "visionzip/llava_arch.py"): "7ba7ba198b16a5584329811ff7d0fb569218c54ac4bd8cd66089034e97e1f686",
    ("divprune", "LLaVA/" + LLAVA): "6df2e3369d8d747ab3a8e74b0a829aaabb1ecf43fa2a5fb7eb801d15864b315c",
}
"""SHA-256 of every file that a function is taken from."""
REPOSITORIES = {
    "AdaV": "JiayiV/AdaV@58d1f8d",
    "CDPruner": "Theia-4869/CDPruner@9541616",
    "FasterVLM": "Theia-4869/FasterVLM@f5d5f12",
    "HiPrune": "Danielement321/HiPrune@6e83a12",
    "MMTok": "Ironieser/MMTok@d1522cd",
    "VisPruner": "Theia-4869/VisPruner@aefa01a",
    "VisionZip": "dvlab-research/VisionZip@3151f6d",
    "divprune": "vbdi/divprune@799e2d9",
}


class Checkouts:
    """A folder that holds the repositories, each under its own name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def function(
        self, repository: str, path: str, name: str, names: Mapping[str, Any], numbers: Mapping[int, int] | None = None
    ) -> Callable[..., Any]:
        """A function of a file, or a method of one of its classes (``Class.method``), without its decorators.

        Args:
            repository: The repository's folder.
            path: The file in it.
            name: The function.
            names: What the function finds as the file's global names.
            numbers: Constants to read as others: sizes of the tower that are written into the code.

        Raises:
            SystemExit: if the file is missing, or not the one that is listed.
        """
        file = self.folder / repository / path
        if not file.is_file():
            raise SystemExit(f"{file}: not there; put a checkout of {REPOSITORIES[repository]} into {self.folder}")
        text = file.read_bytes()
        if hashlib.sha256(text).hexdigest() != FILES[repository, path]:
            raise SystemExit(f"{file}: not the file of {REPOSITORIES[repository]}; check that commit out")
        node: Any = ast.parse(text)
        for part in name.split("."):
            node = next(child for child in node.body if getattr(child, "name", None) == part)
        node.decorator_list = []
        for constant in ast.walk(node) if numbers else ():
            if isinstance(constant, ast.Constant) and type(constant.value) is int:
                constant.value = (numbers or {}).get(constant.value, constant.value)
        scope = dict(names)
        exec(compile(ast.Module([node], []), str(file), "exec"), scope)
        return scope[name.rpartition(".")[2]]


@contextlib.contextmanager
def lowest_index_first() -> Iterator[None]:
    """Sorting and top-k of torch in which the first of equal values comes first.

    torch leaves open which does, and it differs between devices and versions. ``cuda()`` stays on the CPU.
    """
    sort = torch.Tensor.sort

    def stable(x: torch.Tensor, dim: int = -1, descending: bool = False, **_: Any) -> Any:
        return sort(x, dim=dim, descending=descending, stable=True)

    def argsort(x: torch.Tensor, dim: int = -1, descending: bool = False, **_: Any) -> torch.Tensor:
        return stable(x, dim, descending).indices

    def topk(x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, **_: Any) -> Any:
        values, indices = stable(x, dim, largest)
        if k > x.shape[dim]:
            raise RuntimeError("selected index k out of range")
        return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))

    changes: dict[str, Any] = {"sort": stable, "argsort": argsort, "topk": topk}
    old = [(place, name, getattr(place, name)) for place in (torch, torch.Tensor) for name in changes]
    old.append((torch.Tensor, "cuda", torch.Tensor.cuda))
    try:
        for place, name, _ in old:
            setattr(place, name, changes.get(name, lambda x: x))
        yield
    finally:
        for place, name, function in old:
            setattr(place, name, function)
