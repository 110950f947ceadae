"""The authors' selection and packing on one made-up image of several crops, method by method.

Each function takes the stand-in for the authors' model and budgets, and returns one record a budget; what the records
hold is said in ``multicrop_oracles.py``.
"""

from __future__ import annotations

import io
import json
import os
import types
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import _machine  # noqa: F401  finds tests/ of this clone
import numpy as np
import torch
from _authors_code import LLAVA, Checkouts

from tests.kit import multicrop
from tests.kit.multicrop import BEFORE, Case

__all__ = ["METHODS", "Arrays", "Authors"]

IMAGE, IGNORE = -200, -100
"""LLaVA's number of the image's placeholder, and of a label that does not count."""
Arrays = dict[str, np.ndarray]
Run = dict[str, Any]


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


class Authors:
    """The functions of one repository, bound to a stand-in for its model that hands them made-up tensors."""

    def __init__(self, checkouts: Checkouts, case: Case, arrays: Arrays) -> None:
        self.checkouts, self.case, self.arrays = checkouts, case, arrays
        self.tower = SimpleNamespace(
            num_patches_per_side=case.side, config=SimpleNamespace(image_size=case.side * 14), device="cpu"
        )
        self.project: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
        self.table = torch.zeros(0)
        """Embeddings of the prompt's tokens: those before the image, then those behind it."""
        config = SimpleNamespace(mm_patch_merge_type="spatial_unpad", image_aspect_ratio="anyres")
        config.image_grid_pinpoints = []
        self.model = SimpleNamespace(config=config, device="cpu", model=SimpleNamespace(name_or_path="vicuna"))
        self.model.get_vision_tower = lambda: self.tower
        self.model.get_model = lambda: SimpleNamespace(
            get_vision_tower=lambda: self.tower, mm_projector=self.project, embed_tokens=lambda ids: self.table[ids]
        )
        self.names: dict[str, Any] = {
            "torch": torch,
            "F": torch.nn.functional,
            "IMAGE_TOKEN_INDEX": IMAGE,
            "IGNORE_INDEX": IGNORE,
            # Which tiles a picture gets is not what is asked here.
            "get_anyres_image_grid_shape": lambda *_: case.grid[::-1],
        }

    def function(self, repository: str, path: str, name: str, own_side: bool = False, **names: Any) -> Any:
        """A function of the checkout; with ``own_side`` the tower's size stands in it and is replaced."""
        side = self.case.side
        numbers = {24: side, 576: side * side, 575: side * side - 1} if own_side and side != 24 else None
        return self.checkouts.function(repository, path, name, self.names | names, numbers)

    def bind(self, repository: str, path: str, name: str, own_side: bool = False, **names: Any) -> None:
        """Makes a function a method of the stand-in."""
        short = name.rpartition(".")[2]
        function = self.function(repository, path, name, own_side, **names)
        setattr(self.model, short, types.MethodType(function, self.model))

    def take(self, name: str) -> torch.Tensor:
        return tensor(self.arrays[name])

    def heads(self, name: str) -> torch.Tensor:
        """Attention rows of two equal heads, [C, 2, P]."""
        return self.take(name)[:, None].expand(-1, 2, -1)

    def prompt(self) -> torch.Tensor:
        ids = torch.arange(BEFORE + self.case.text)
        return torch.cat([ids[:BEFORE], torch.tensor([IMAGE]), ids[BEFORE:]])[None]

    def crops(self) -> torch.Tensor:
        """What stands for the pixels: one picture of C crops."""
        return torch.zeros(1, self.case.crops, 3, 1, 1)

    def pack(self, prepare: str = "prepare_inputs_labels_for_multimodal") -> torch.Tensor:
        """What the authors' code puts where the image is, [rows, D]."""
        height, width = self.case.picture
        sizes = [(width, height)]
        embeds = getattr(self.model, prepare)(self.prompt(), None, None, None, None, self.crops(), image_sizes=sizes)[4]
        return embeds[0, BEFORE : embeds.shape[1] - self.case.text]

    def markers(self) -> torch.Tensor:
        """Features [C, P, 1] that say which patch each is; the prompt's are -1, the newline's -2."""
        self.table = torch.full((BEFORE + self.case.text, 1), -1.0)
        self.model.model.image_newline = torch.tensor([-2.0])
        return torch.arange(self.case.crops * self.case.patches, dtype=torch.float32).reshape(self.case.crops, -1, 1)

    def masked(self, masks: torch.Tensor, *more: Any) -> list[int]:
        """Positions of what a mask [C, P] keeps, by the authors' own packing of one image."""
        markers = self.markers()

        def kept(mask: torch.Tensor) -> list[int]:
            self.model.encode_images = lambda *_, **__: (markers, mask, *more)
            return [int(number) for number in self.pack()[:, 0]]

        order = kept(torch.ones_like(masks))
        assert order == multicrop.raster(self.case).tolist(), "the authors' layout is another"
        return [order.index(number) for number in kept(masks)]


class Watched:
    """torch, with AdaV's two lists of picks kept, and ``stride`` between the crops of the second."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.picks: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def arange(self, *args: Any, **options: Any) -> torch.Tensor:
        # Of the function's calls only the one that numbers the crops names a device.
        return torch.arange(*args, **options) * (self.stride if "device" in options else 1)

    def cat(self, tensors: Sequence[torch.Tensor], *args: Any, **options: Any) -> torch.Tensor:
        if not tensors[0].is_floating_point():
            self.picks = list(tensors)
        return torch.cat(tensors, *args, **options)


def adafv(authors: Authors, budgets: Sequence[int]) -> list[Run]:
    case, path = authors.case, "llava/model/language_model/llava_llama.py"
    text = authors.take("text_embeds")
    authors.bind("AdaV", LLAVA, "LlavaMetaForCausalLM.encode_images")
    authors.bind("AdaV", LLAVA, "LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal")
    authors.model.get_visual_token_num = lambda: 1  # FasterVLM's, which AdaV sets aside.
    authors.tower = _called(authors.tower, (authors.take("image_features"), authors.heads("cls_attention")))
    authors.table = torch.cat([torch.zeros(BEFORE, case.width), text])
    image, cls = authors.pack(), authors.take("cls_attention")
    flat = authors.take("image_features").flatten(0, 1)
    assert torch.equal(image, flat[multicrop.raster(case)]), "the authors' layout is another"
    embeds = torch.cat([torch.zeros(BEFORE, case.width), image, text])[None]
    authors.model.prepare_inputs_labels_for_multimodal = lambda *_, **__: (*(None,) * 4, embeds, None, 0, cls)
    split = authors.function("AdaV", path, "max_sqrt_sum_with_indices")

    def select(overall: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """What the text list and the CLS list pick; the rows are those of all picks in ascending order."""
        watched, settings = Watched(stride), {"method": "adav", "overall_tokens": overall}
        out: dict[str, Any] = {}
        generate = authors.function(
            "AdaV", path, "LlavaLlamaForCausalLM.generate", own_side=True,
            torch=watched, json=json, os=os, max_sqrt_sum_with_indices=split,
            open=lambda *_: io.StringIO(json.dumps(settings)),
            super=lambda: SimpleNamespace(generate=lambda **given: out.update(given)),
        )  # fmt: skip
        generate(authors.model, None, images=authors.crops())
        rows = image[torch.cat(watched.picks).sort().values]
        assert torch.equal(out["inputs_embeds"], torch.cat([embeds[0, :BEFORE], rows, text])[None])
        return watched.picks[0].numpy(), watched.picks[1].numpy()

    runs = []
    for overall in budgets:
        official = np.sort(np.concatenate(select(overall, 1)))
        by_text, by_cls = select(overall, case.patches)
        mended = np.sort(np.concatenate([by_text, multicrop.positions(case, by_cls)]))
        runs.append(
            {"overall": overall, "text": len(by_text), "official": official.tolist(), "mended": mended.tolist()}
        )
    return runs


def _called(tower: SimpleNamespace, returns: Any) -> Any:
    """A tower that returns the same whatever it is called with."""

    class Tower(SimpleNamespace):
        def __call__(self, *_: Any, **__: Any) -> Any:
            return returns

        forward = __call__

    return Tower(**vars(tower))


def cdpruner(authors: Authors, budgets: Sequence[int]) -> list[Run]:
    authors.bind("CDPruner", LLAVA, "LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal")
    encode = authors.function("CDPruner", LLAVA, "LlavaMetaForCausalLM.encode_images")
    clip = authors.take("clip_image_embeds"), authors.take("clip_text_embeds")
    authors.tower = _called(authors.tower, (authors.take("vision_features"), *clip))
    runs = []
    for each in budgets:
        authors.project, authors.model.visual_token_num = lambda _: authors.take("image_features"), each
        masks = encode(authors.model, authors.crops())[1]
        assert masks.sum(dim=1).tolist() == [each] * authors.case.crops
        runs.append({"each": each, "kept": authors.masked(masks)})
    return runs


def divprune(authors: Authors, budgets: Sequence[float]) -> list[Run]:
    case, path, picks = authors.case, "LLaVA/" + LLAVA, []
    environ: dict[str, str] = {}
    unpad = authors.function("divprune", path, "unpad_image")
    for name in ("pairwise_cosine_similarity", "prepare_inputs_labels_for_multimodal"):
        short = f"LlavaMetaForCausalLM.{name}"
        authors.bind("divprune", path, short, os=SimpleNamespace(environ=environ), unpad_image=unpad)
    greedy = authors.function("divprune", path, "LlavaMetaForCausalLM.DivPrune")

    def watched(*args: Any, **options: Any) -> Any:
        result = greedy(authors.model, *args, **options)
        picks.append(result[0].tolist())
        return result

    markers = authors.markers()
    authors.model.encode_images = lambda _: markers
    order = [max(int(number), -1) for number in authors.pack()[:, 0]]
    assert order == multicrop.unpadded(case).tolist(), "the authors' layout is another"
    authors.model.DivPrune = watched
    authors.table = torch.zeros(BEFORE + case.text, case.width)
    authors.model.model.image_newline = authors.take("newline")
    authors.model.encode_images = lambda _: authors.take("image_features")
    for ratio in budgets:
        environ.update(LAYER_INDEX="0", SUBSET_RATIO=str(ratio))
        authors.pack()
    return [{"ratio": ratio, "picks": pick} for ratio, pick in zip(budgets, picks, strict=True)]


def fastervlm(authors: Authors, budgets: Sequence[int]) -> list[Run]:
    authors.bind("FasterVLM", LLAVA, "LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal")
    encode = authors.function("FasterVLM", LLAVA, "LlavaMetaForCausalLM.encode_images")
    authors.tower = _called(authors.tower, (authors.take("vision_features"), authors.heads("cls_attention")))
    runs = []
    for each in budgets:
        authors.model.get_visual_token_num = lambda each=each: each
        runs.append({"each": each, "kept": authors.masked(encode(authors.model, authors.crops())[1], None)})
    return runs


def vispruner(authors: Authors, budgets: Sequence[int]) -> list[Run]:
    authors.bind("VisPruner", LLAVA, "LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal")
    encode = authors.function("VisPruner", LLAVA, "LlavaMetaForCausalLM.encode_images")
    authors.tower = _called(authors.tower, (authors.take("vision_features"), authors.heads("cls_attention")))
    authors.model.get_important_ratio = lambda: 0.5
    runs = []
    for each in budgets:
        authors.model.get_visual_token_num = lambda each=each: each
        runs.append({"each": each, "kept": authors.masked(encode(authors.model, authors.crops())[1])})
    return runs


def hiprune(authors: Authors, budgets: Sequence[int]) -> list[Run]:
    case, path, environ = authors.case, "LLaVA/" + LLAVA, {"HIPRUNE_ALPHA": "0.1", "HIPRUNE_OBJECT_LAYER": "9"}
    authors.bind("HiPrune", path, "LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal")
    encode = authors.function(
        "HiPrune", path, "LlavaMetaForCausalLM.encode_images", own_side=True, os=SimpleNamespace(environ=environ)
    )
    authors.model.config.mm_vision_select_layer = -2

    def received(name: str) -> torch.Tensor:
        """Maps [C, 2, P + 1, P + 1] whose mean over heads and queries is the array."""
        row = torch.cat([torch.zeros(case.crops, 1), authors.take(name)], dim=1)
        return row[:, None, None].expand(-1, 2, case.patches + 1, -1)

    runs = []
    for overall in budgets:
        environ["HIPRUNE_RETENTION"] = str(overall)
        maps: list[Any] = [None] * 24
        maps[8], maps[-2] = received("shallow_attention"), received("deep_attention")
        authors.tower = _called(authors.tower, (authors.take("vision_features"), maps))
        runs.append({"overall": overall, "kept": authors.masked(encode(authors.model, authors.crops())[1])})
    return runs


def mmtok(authors: Authors, budgets: Sequence[int]) -> list[Run]:
    core, arch = "mmtok/core/semantic_selector.py", "mmtok/llava/llava_arch_mmtok.py"
    kernel = authors.function("MMTok", core, "greedy_merged_jit_kernel")
    normalize = authors.function("MMTok", core, "SemanticTokenSelector._l2_normalize")
    choose = authors.function(
        "MMTok", core, "SemanticTokenSelector.mm_coverage_selection",
        os=SimpleNamespace(getenv=lambda _, default: default), greedy_merged_jit_kernel=kernel,
    )  # fmt: skip
    select = authors.function("MMTok", "mmtok/core/mmtok_core.py", "MMTokCore.select_vision_tokens")
    for name in ("encode_images_mmtok_multi", "prepare_inputs_labels_for_multimodal_mmtok"):
        authors.bind("MMTok", arch, name)
    authors.bind("MMTok", arch, "restore_image_features_sorted", own_side=True)
    order, runs = multicrop.raster(authors.case).tolist(), []
    for each in budgets:
        selector = SimpleNamespace(target_vision_tokens=each, alpha=0.5, _l2_normalize=normalize)
        selector.mm_coverage_selection = types.MethodType(choose, selector)
        model = SimpleNamespace(
            token_selector=selector, target_vision_tokens=each, softmax_tv_temperature=0.02, softmax_vv_temperature=0.2
        )
        features = authors.take("image_features"), authors.take("vision_features"), authors.take("text_embeds")
        chosen = torch.tensor(select(model, *features)[1])
        markers = torch.take_along_dim(authors.markers(), chosen[:, :, None], dim=1)
        authors.tower = _called(authors.tower, (markers, chosen))
        rows = authors.pack("prepare_inputs_labels_for_multimodal_mmtok")
        runs.append({"each": each, "kept": [order.index(int(number)) for number in rows[:, 0]]})
    return runs


def visionzip(authors: Authors, budgets: Sequence[tuple[int, int]]) -> list[Run]:
    """A patch's hidden state is a column of its own, so that the rows say what they were merged from."""
    case, arch, targets = authors.case, "visionzip/llava_arch.py", []
    size = case.patches + 1

    class Recorded(Watched):
        def isin(self, x: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
            targets.append(of.tolist())
            return torch.isin(x, of)

    encode = authors.function("VisionZip", "visionzip/clip_encoder.py", "CLIPVisionTower_VisionZip.forward",
                              torch=Recorded(1))  # fmt: skip
    names = "encode_images_visionzip_multi", "prepare_inputs_labels_for_multimodal_visionzip"
    for name in (*names, "restore_image_features_sorted"):
        authors.bind("VisionZip", arch, name, own_side=name == "restore_image_features_sorted")
    hidden = torch.eye(case.crops * size).reshape(case.crops, size, -1)
    cls = torch.cat([torch.zeros(case.crops, 1), authors.take("cls_attention")], dim=1)
    maps = cls[:, None, None].expand(-1, 2, size, -1)
    keys = torch.cat([torch.ones(case.crops, 1, multicrop.WIDTHS["vision_keys"]), authors.take("vision_keys")], dim=1)
    seen = SimpleNamespace(attentions=[maps, maps], hidden_states=[hidden, hidden])
    clip = _called(SimpleNamespace(), seen)
    clip.vision_model = SimpleNamespace(encoder=SimpleNamespace(layers=[SimpleNamespace(metric=keys)] * 2))
    authors.tower.vision_tower, authors.tower.dtype = clip, torch.float32
    authors.tower.forward = lambda images: encode(authors.tower, images)
    authors.table = torch.zeros(BEFORE + case.text, case.crops * size)
    authors.model.model.image_newline = torch.zeros(case.crops * size)
    runs = []
    for dominant, contextual in budgets:
        clip._info = {"dominant": dominant - 1, "contextual": contextual}
        rows = authors.pack(names[1])
        runs.append({"dominant": dominant, "contextual": contextual, **_zipped(case, rows, targets[-1], contextual)})
    return runs


def _zipped(case: Case, rows: torch.Tensor, targets: list[int], contextual: int) -> Run:
    """``rows``, ``merged`` and ``into`` of the weights [rows, C · (P + 1)] that VisionZip gives hidden states.

    A row of one hidden state says which; in a contextual one, of several, the target is told by its place among the
    patches that are not dominant. The rows' order is the code's: contextual ones end the whole image's, and the whole.
    """
    size, position, many = case.patches + 1, np.argsort(multicrop.raster(case)), len(rows) // case.crops
    contexts = {*range(many - contextual, many), *range(len(rows) - (case.crops - 1) * contextual, len(rows))}
    columns = [row.nonzero()[:, 0].tolist() for row in rows]
    assert all(len(column) == 1 for at, column in enumerate(columns) if at not in contexts)
    kept = {column[0] for at, column in enumerate(columns) if at not in contexts}
    named, into = [], np.full(case.crops * case.patches, -1)
    for at, column in enumerate(columns):
        crop, target = column[0] // size, column[0]
        if at in contexts:
            left = [n for n in range(crop * size, crop * size + size) if n not in kept]
            target = next(n for n in column if n in {left[t] for t in targets})
        if target % size == 0:
            named.append(-1 - crop)
            continue
        named.append(int(position[target - crop - 1]))
        into[[position[n - crop - 1] for n in column]] = named[-1]
    assert (into >= 0).all()
    return {"rows": named, "merged": sorted(contexts), "into": into.tolist()}


METHODS: dict[str, tuple[str, Callable[[Authors, Any], list[Run]]]] = {
    "adafv": ("AdaV", adafv),
    "cdpruner": ("CDPruner", cdpruner),
    "divprune": ("divprune", divprune),
    "fastervlm": ("FasterVLM", fastervlm),
    "hiprune": ("HiPrune", hiprune),
    "mmtok": ("MMTok", mmtok),
    "vispruner": ("VisPruner", vispruner),
    "visionzip": ("VisionZip", visionzip),
}
"""The repository's folder, and what runs its code at some budgets."""
