"""What the methods' deviations from their papers and codes come to, on the demo model; tables of docs/.

    python benchmarks/fidelity.py OUT [--pictures 60] [--parts agreement,rank,merged,words,layers]

``OUT`` is an engine directory of the demo model. The parts, each written to results/fidelity.json when it is done:

agreement  kept sets of the graphs beside those of the NumPy references, on real pictures; and of ``vispruner``'s
           reference in float64, written here once more
rank       the average that ``sparsevlm:ratio=rank`` reaches, on prompts of different length
merged     ``visionzip``'s merged rows, merged behind the projector as here and before it as in the authors' code
words      what ``mmtok`` keeps with and without the question's function words
layers     tokens and operations of ``sparsevlm`` in a decoder of 40 layers, cut where the code cuts and where ours does
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from _checkpoints import write_checkpoint
from _machine import machine, write_json
from count_flops_7b import count
from eval_demo import before_the_decoder
from safetensors import safe_open
from tokenizers import Tokenizer

import trtprune
from trtprune import pruning
from trtprune.backends.running import Running
from trtprune.engine_dir import WEIGHTS
from trtprune.eval.loaders import load_data
from trtprune.pruning.inputs import INPUTS
from trtprune.runtime import Vlm
from trtprune.variants import Variant, Variants

RESULT = Path(__file__).resolve().parent / "results" / "fidelity.json"
KEEPS = (192, 64, 16)
RANK_KEEPS = (192, 128, 100, 64)
SENTENCE = "Answer the question using a single word or phrase."
DEPTH_KEEPS = (192, 128, 64)
CODE = {192: "2:300,6:200,15:110", 128: "2:303,6:110,15:36", 64: "2:66,6:30,15:17"}
"""Layers and counts of the code's tables, as schedules by hand."""
FUNCTION_WORDS = """
a an the is are was were be been being am have has had do does did it they he she we you i me them him her what where
when why how who whom which whose and or but so if then to for with by from at into onto upon
"""
"""Articles, auxiliary verbs, pronouns, question words, conjunctions and some prepositions: the kinds of words that
MMTok's code drops, listed here anew."""


class Listener:
    """A session with the inputs and outputs of its last run."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs: dict[str, np.ndarray] = {}
        self.out: dict[str, np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, inputs: Any, cache: Any = None) -> Any:
        self.inputs, self.out = dict(inputs), dict(self.session.run(inputs, cache))
        return self.out


def pruned(vlm: Vlm, features: Any, question: str, keep: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """What the pruner reads of a picture and a question, and the indices and rows it returns."""
    from trtprune.runtime.budget import Budget
    from trtprune.runtime.clock import Clock
    from trtprune.runtime.pipeline import turns_of

    listener = Listener(vlm.chain.session("pruner"))
    prompt, clock = vlm.encoder.encode(turns_of(question, 1, None)), Clock()
    with vlm.chain.wrapped(lambda component, session: listener if component.role == "pruner" else session):
        vlm.pipeline.select(prompt, vlm.pipeline.embed(prompt, clock), [features], Budget(keep), 0, clock)
    wanted = {"image_features", "text_mask", *INPUTS}
    given = {name: value[0] for name, value in listener.inputs.items() if name in wanted}
    given["grid"] = vlm.config.model.patch_grid
    return given, listener.out["kept_indices"][0], listener.out["pruned_features"][0]


def shared(first: Iterable[int], second: Iterable[int]) -> float:
    """The share of the first set that the second has, too."""
    mine, theirs = set(map(int, first)), set(map(int, second))
    return len(mine & theirs) / len(mine)


def overlap(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """How many pairs of kept sets are equal, and the tokens they share on average and at least."""
    shares = [shared(a, b) for a, b in pairs]
    return {
        "cases": len(pairs),
        "equal": sum(share == 1.0 for share in shares),
        "shared": statistics.mean(shares),
        "least": min(shares),
    }


def rows_of(data: str, many: int) -> list[Any]:
    """The first questions of a test set, of different pictures."""
    found: dict[Any, Any] = {}
    for row in load_data(data, limit=2000, seed=0).rows:
        found.setdefault(row.picture_key, row)
    return list(found.values())[:many]


def vispruner64(given: dict[str, np.ndarray], keep: int) -> np.ndarray:
    """VisPruner with everything in float64."""
    order = np.argsort(-given["cls_attention"].astype(np.float64), kind="stable")
    vectors = given["vision_features"].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept, left, diverse = order[: keep // 2], order[keep // 2 :], keep - keep // 2
    while len(left) > diverse:
        even, odd = left[::2], left[1::2]
        gone = min(8, len(left) - diverse, len(even))
        by_score = np.argsort(-(vectors[even] @ vectors[odd].T).max(axis=1), kind="stable")
        left = np.concatenate([even[by_score[gone:]], odd])
    return np.sort(np.concatenate([kept, left]))


def agreement(out: Path, pictures: int) -> list[dict[str, Any]]:
    rows, found = rows_of("scenes", pictures // 3), []
    with Variants(out, Running(threads=1)) as variants:
        for name in (n for n in before_the_decoder() if n not in ("random", "uniform", "downsample")):
            vlm, method = variants.open(Variant.parse(name)), pruning.get(name)
            looks = [vlm.features([row.picture()])[0] for row in rows]
            for keep in KEEPS:
                cases = [pruned(vlm, look, row.question, keep) for look, row in zip(looks, rows, strict=True)]
                pairs = [
                    (kept, method.reference(given.pop("image_features"), keep=keep, **given))
                    for given, kept, _ in cases
                ]
                line = {"method": name, "keep": keep, **overlap(pairs)}
                if name == "vispruner":
                    line["float64"] = overlap(
                        [(b, vispruner64(given, keep)) for (given, *_), (_, b) in zip(cases, pairs, strict=True)]
                    )
                found.append(line)
                say(line)
            variants.release(Variant.parse(name))
    return found


def rank(out: Path, pictures: int) -> list[dict[str, Any]]:
    rows, found = rows_of("scenes", pictures // 4), []
    with Variants(out, Running(threads=1)) as variants:
        for scale in ("budget", "published"):
            variant = Variant.parse(f"sparsevlm:ratio=rank:scale={scale}")
            vlm, method = variants.open(variant), pruning.get("sparsevlm")
            assert isinstance(method, pruning.InLlmMethod)
            depth, total = vlm.config.kv.num_layers, vlm.config.model.visual_tokens
            points = method.points(depth, dict(variant.options))
            served = method.plan(depth, dict(variant.options)).served(total)
            looks = [vlm.features([row.picture()])[0] for row in rows]
            for keep in (k for k in RANK_KEEPS if k in served):
                nominal, processed, text = [], [], []
                for look, row in zip(looks, rows, strict=True):
                    for question in (row.question, f"{row.question}\n{SENTENCE}"):
                        result = vlm.generate(look, question, keep=keep, max_new_tokens=1)
                        counts = result.segment_tokens[0]
                        ends = (*points[1:], depth)
                        layers = [n * (end - point) for n, point, end in zip(counts[1:], points, ends, strict=True)]
                        nominal.append((total * points[0] + sum(layers)) / depth)
                        processed.append(result.tokens_per_layer)
                        text.append(result.prompt_tokens - total)
                line = {
                    "scale": scale, "keep": keep, "prompts": len(text), "text_tokens": [min(text), max(text)],
                    "nominal": {"mean": statistics.mean(nominal), "min": min(nominal), "max": max(nominal)},
                    "processed": statistics.mean(processed),
                }  # fmt: skip
                found.append(line)
                say(line)
            variants.release(variant)
    return found


def projector(out: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The demo model's projector in float64: two linear layers with a GELU between."""
    weights = {}
    with safe_open(str(out / WEIGHTS / "model.safetensors"), "np") as file:
        for name in file.keys():  # noqa: SIM118
            if "multi_modal_projector" in name:
                weights[name.rpartition("projector.")[2]] = file.get_tensor(name).astype(np.float64)
    erf = np.vectorize(math.erf)

    def project(x: np.ndarray) -> np.ndarray:
        hidden = x.astype(np.float64) @ weights["linear_1.weight"].T + weights["linear_1.bias"]
        hidden = 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))
        return np.asarray(hidden @ weights["linear_2.weight"].T + weights["linear_2.bias"])

    return project


def merged(out: Path, pictures: int) -> list[dict[str, Any]]:
    rows, found = rows_of("scenes", pictures // 4), []
    method, project = pruning.get("visionzip"), projector(out)
    with Variants(out, Running(threads=1)) as variants:
        zipped, plain = variants.open(Variant.parse("visionzip")), variants.open(Variant.parse("vispruner"))
        looks = [(zipped.features([row.picture()])[0], plain.features([row.picture()])[0]) for row in rows]
        for keep in KEEPS:
            count = int(keep * 5 / 32 + 0.5)
            error, cosine, length, apart, whole = [], [], [], [], []
            for (look, other), row in zip(looks, rows, strict=True):
                given, _, here = pruned(zipped, look, row.question, keep)
                before = pruned(plain, other, row.question, keep)[0]["vision_features"]
                apart.append(float(np.abs(project(before[:20]) - given["image_features"][:20]).max()))
                mean = project(before.mean(axis=0, keepdims=True))[0]
                apart_of_mean = np.linalg.norm(given["image_features"].astype(np.float64).mean(axis=0) - mean)
                whole.append(float(apart_of_mean / np.linalg.norm(mean)))
                # Which rows are merged depends on keys and attention alone, so that any features can be given.
                inputs = {**given, "image_features": before, "cls_feature": np.zeros(before.shape[1], np.float32)}
                rows_before = method.pruned(inputs.pop("image_features"), keep=keep, **inputs)[1][-count:]
                there, ours = project(rows_before), here[-count:].astype(np.float64)
                norms = np.linalg.norm(ours, axis=1), np.linalg.norm(there, axis=1)
                error += list(np.linalg.norm(ours - there, axis=1) / norms[1])
                cosine += list((ours * there).sum(axis=1) / (norms[0] * norms[1]))
                length += list(norms[0] / norms[1])
            line = {
                "keep": keep, "pictures": len(rows), "merged_rows": count, "projector_error": max(apart),
                "relative_difference_of_the_mean": statistics.mean(whole),
                "relative_difference": statistics.mean(error), "cosine": statistics.mean(cosine),
                "length_here_over_code": [float(np.quantile(length, q)) for q in (0.05, 0.5, 0.95)],
            }  # fmt: skip
            found.append(line)
            say(line)
    return found


def words(out: Path, pictures: int) -> list[dict[str, Any]]:
    rows, found = rows_of("scenes", pictures), []
    dropped_words = frozenset(FUNCTION_WORDS.split())
    method, tokenizer = pruning.get("mmtok"), Tokenizer.from_file(str(out / "tokenizer.json"))
    with Variants(out, Running(threads=1)) as variants:
        vlm = variants.open(Variant.parse("mmtok"))
        looks = [vlm.features([row.picture()])[0] for row in rows]
        for keep in KEEPS:
            pairs, dropped = [], []
            for look, row in zip(looks, rows, strict=True):
                given, kept, _ = pruned(vlm, look, row.question, keep)
                spoken = row.question.rstrip("?.! ").split()
                content = [word for word in spoken if word.lower().strip(",'") not in dropped_words] or spoken
                ids = tokenizer.encode(" ".join(content), add_special_tokens=False).ids
                given["text_embeds"] = np.asarray(vlm.chain.embed(np.array([ids], np.int64)))[0]
                given["text_mask"] = np.ones(len(ids), np.int64)
                pairs.append((kept, method.reference(given.pop("image_features"), keep=keep, **given)))
                dropped.append(1 - len(content) / len(spoken))
            line = {"keep": keep, "words_dropped": statistics.mean(dropped), **overlap(pairs)}
            found.append(line)
            say(line)
    return found


def layers(out: Path, pictures: int) -> list[dict[str, Any]]:
    found = []
    method = pruning.get("sparsevlm")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        checkpoint.mkdir()
        write_checkpoint(checkpoint, "13b")
        for keep in DEPTH_KEEPS:
            ways: tuple[tuple[str, dict[str, Any]], ...] = (
                ("scaled (default)", {}),
                ("layers=published", {"layers": "published"}),
                ("the code's layers and counts", {"schedule": CODE[keep]}),
            )
            for what, options in ways:
                wanted = {} if "schedule" in options else {"keep": keep}
                made = trtprune.build(
                    str(checkpoint), Path(folder) / "out", method=method.name, dtype="float16", backend="tensorrt",
                    export_only=True, force=True, options=options, **wanted,
                )  # fmt: skip
                assert made.pruning.schedule is not None
                schedule = made.pruning.schedule.schedule(made.pruning.keep, 576)
                counted = count(made, made.pruning.keep)
                line = {
                    "keep": keep, "cuts": what, "points": schedule.points, "after": schedule.after,
                    "nominal": schedule.nominal, "processed": schedule.processed,
                    "decoder_tera_operations": counted["tera_operations"]["decoder"], "kv_mb": counted["kv_mb"],
                }  # fmt: skip
                found.append(line)
                say(line)
    return found


PARTS: dict[str, Callable[[Path, int], list[dict[str, Any]]]] = {
    "agreement": agreement, "rank": rank, "merged": merged, "words": words, "layers": layers,
}  # fmt: skip


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--json", type=Path, default=RESULT)
    given = parser.parse_args()
    result = json.loads(given.json.read_text(encoding="utf-8")) if given.json.exists() else {}
    for name in given.parts.split(","):
        result[name] = PARTS[name](given.out, given.pictures)
        result |= {"command": "python benchmarks/fidelity.py OUT", "machine": machine()}
        write_json(given.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
