"""``inspect``: the content of an engine directory, as facts and as text."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from trtprune.compiler.budget import describe_build, describe_served
from trtprune.engine_dir import CONFIG_NAME, EngineDir, open_engine_dir
from trtprune.engine_dir.graphs import count_operators, read_graph
from trtprune.engine_dir.roles import PACK, VISION
from trtprune.pruning.inputs import INPUTS
from trtprune.runtime.images import processor_from_settings
from trtprune.runtime.positions import position_rule

__all__ = ["describe", "render"]

OPS_SHOWN = 8
NEWLINES = {
    "keep": "a newline token stays beside the budget if something of its line does",
    "drop": "newline tokens of a pruned image are dropped",
    "candidates": "newline tokens are chosen from like others",
}
"""Words for each rule of ``config.vision.newlines``."""


def describe(engine_dir: EngineDir | str | os.PathLike[str]) -> dict[str, Any]:
    """The facts of a build, ready for JSON.

    Raises:
        EngineDirError: if the directory is damaged, or a graph cannot be read.
    """
    made = engine_dir if isinstance(engine_dir, EngineDir) else open_engine_dir(engine_dir)
    files = [_file(made.root, name) for name in (CONFIG_NAME, *sorted(made.files))]
    config, kv = json.loads(made.to_json()), made.kv
    return {
        "path": str(made.root),
        **{name: config[name] for name in ("backend", "dtype", "weight_dtype", "lowering", "model")},
        "pruning": config["pruning"] | {"budget": describe_build(made), "served": describe_served(made)},
        "vision": config["vision"],
        "text": config["text"],
        "positions": config["positions"],
        "chain": config["chain"],
        "components": [
            facts
            | {
                "engine_bytes": made.path(component.engine).stat().st_size if component.engine else None,
                "ops": count_operators(read_graph(made.path(component.onnx))),
            }
            for facts, component in zip(config["components"], made.components, strict=True)
        ],
        "kv": {
            "capacity": kv.capacity,
            "bytes_per_token": kv.bytes_per_token,
            "layers": kv.num_layers,
            "kv_heads": kv.num_kv_heads,
            "head_dim": kv.head_dim,
            "dtype": kv.dtype,
            "bytes_at_capacity": kv.capacity * kv.bytes_per_token,
            **_pictures(made),
        },
        **{name: config[name] for name in ("engines", "built_with", "build_digest")},
        "files": files,
        "bytes": sum(file["bytes"] for file in files),
    }


def _pictures(made: EngineDir) -> dict[str, Any]:
    """An image's room in the cache at the build's own budget, and the largest number of images in a prompt.

    ``tokens_by_segment`` are its tokens in each segment of a decoder that is cut, and None where they are not known
    before the run.  A prompt holds as many pictures as leave it a token of text; what is left is
    ``text_at_capacity``.
    """
    model, pruning, kv = made.model, made.pruning, made.kv
    total, held = model.visual_tokens, pruning.keep
    layers: list[int] = [kv.num_layers]
    tokens: list[int] | None = [pruning.keep]
    if pruning.schedule is not None:
        # A whole image enters the first segment, so a prompt needs room for that.
        entering = pruning.schedule.entering(pruning.keep, total)
        layers, tokens, held = list(kv.segment_layers), None if entering is None else list(entering), total
    # With rows and columns the longest image is a single row.
    row = np.stack([np.zeros(total, np.int64), np.zeros(total, np.int64), np.arange(total)], axis=1)
    places = position_rule(made.positions.rule, made.positions.axes).most(held, row)
    images = min((kv.capacity - 1) // held, (model.max_positions - 1) // places)
    per_layer = None if tokens is None else sum(n * count for n, count in zip(layers, tokens, strict=True))
    return {
        "layers_by_segment": layers,
        "tokens_by_segment": tokens,
        "tokens_per_layer": None if per_layer is None else round(per_layer / kv.num_layers, 3),
        "bytes_per_image": None if per_layer is None else per_layer * kv.bytes_per_token // kv.num_layers,
        "bytes_per_image_unpruned": total * kv.bytes_per_token,
        "images_at_capacity": images,
        "images_at_capacity_unpruned": min(kv.capacity - 1, model.max_positions - 1) // total,
        "text_at_capacity": min(kv.capacity - images * held, model.max_positions - images * places),
    }


def render(facts: dict[str, Any]) -> str:
    """The facts as lines of text, at most as wide as the terminal."""
    import shutil
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    # Outside of a terminal there is no width, and grep could not find a wrapped path.
    columns = shutil.get_terminal_size((160, 0)).columns
    console = Console(file=out, width=max(80, columns), highlight=False, markup=False, emoji=False)
    for table in _tables(facts):
        console.print(table)
        console.print()
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _tables(facts: dict[str, Any]) -> list[Any]:
    from rich import box
    from rich.table import Table

    model, pruning, kv = facts["model"], facts["pruning"], facts["kv"]
    weights = f", {facts['weight_dtype']} weights" if facts["weight_dtype"] else ""
    rows = [
        ("model", f"{model['id']}" + (f" at {model['revision'][:12]}" if model["revision"] else "")),
        ("family", f"{model['family']}, hidden size {model['hidden_size']}, {kv['layers']} layers"),
        ("image", _image_words(facts)),
        ("method", " ".join([pruning["method"], *(f"{k}={v}" for k, v in sorted(pruning["options"].items()))])),
        ("budget", pruning["budget"] + (f"; {pruning['served']} without building again" if pruning["served"] else "")),
        ("positions", _position_words(facts["positions"])),
        ("needs", ", ".join(pruning["needs"]) or "the image features only"),
        ("vision", "returns " + ", ".join(spec["name"] for c in facts["components"] if c["role"] == VISION
                                          for spec in c["outputs"])),
        ("saliency", _saliency_words(facts)),
        ("prompt", _prompt_words(facts["text"])),
        ("backend", f"{facts['backend']}, {facts['dtype']}{weights}, "
                    + ", ".join(f"{key} as {value}" for key, value in sorted(facts["lowering"].items()))),
        ("kv cache", f"{_size(kv['bytes_per_token'])} a token; {_picture_words(kv)}"),
        ("capacity", f"{kv['capacity']} tokens ({_size(kv['bytes_at_capacity'])}): {_capacity_words(kv)}"),
        *_engine_rows(facts),
        ("built with", ", ".join(f"{key} {value}" for key, value in sorted(facts["built_with"].items()))),
        ("path", f"{facts['path']} ({_size(facts['bytes'])})"),
    ]  # fmt: skip
    summary = Table.grid(padding=(0, 2))
    for row in rows:
        summary.add_row(*row)
    components = Table("component", "", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for component in facts["components"]:
        ops = component["ops"]
        most = sorted(ops.items(), key=lambda item: (-item[1], item[0]))[:OPS_SHOWN]
        used = ", ".join(f"{name} {count}" for name, count in most)
        components.add_row(component["name"], "in", _specs(component["inputs"]))
        components.add_row("", "out", _specs(component["outputs"]))
        for place, profile in enumerate(component["profiles"]):
            title = "engine" if len(component["profiles"]) == 1 else f"engine {place}"
            components.add_row("", title, f"{_size(component['engine_bytes'])}\n{_ranges(profile)}")
        components.add_row("", "ops", f"{sum(ops.values())}: {used}" + (", …" if len(ops) > OPS_SHOWN else ""))
    files = Table("file", "size", "", box=box.SIMPLE_HEAD, pad_edge=False)
    files.columns[0].overflow = "fold"
    files.columns[1].justify = "right"
    for file in facts["files"]:
        shared = f"shared with {file['links'] - 1} other place" if file["links"] > 1 else ""
        files.add_row(file["name"], _size(file["bytes"]), shared + ("s" if file["links"] > 2 else ""))
    return [summary, components, files]


def _prompt_words(text: dict[str, Any]) -> str:
    """The form of the chat template."""
    tokens = f"{len(text['tokenizer']['added_tokens'])} added tokens"
    if text["template"] is None:
        return f"chat template not compiled, for runtimes with jinja2 only: {text['reason']}; {tokens}"
    return f"chat template compiled; {tokens}"


def _position_words(positions: dict[str, Any]) -> str:
    if positions["axes"] == 1:
        return str(positions["rule"])
    order = "interleaved" if positions["interleaved"] else "one behind another"
    sections = ", ".join(map(str, positions["sections"]))
    return f"{positions['rule']}; time, row and column turn {sections} rotary frequencies, {order}"


def _image_words(facts: dict[str, Any]) -> str:
    """The crops of an image, their size, and the visual tokens they become."""
    model, vision = facts["model"], facts["vision"]
    (least, most), (fewest, crops) = vision["tokens"], vision["crops"]
    if model["image_size"] is None:
        words = f"any size, processor {vision['processor']}"
    else:
        words = f"{model['image_size'][1]} x {model['image_size'][0]} pixels, "
        words += f"{model['patch_grid'][0]} x {model['patch_grid'][1]} patches"
    if crops > 1:
        words = f"{fewest} to {crops} crops of {words}" if fewest < crops else f"{crops} crops of {words}"
    words += f", {least if least == most else f'{least} to {most}'} visual tokens"
    if any(component["role"] == PACK for component in facts["components"]):
        words += f"; processor {vision['processor']}"
        if processor_from_settings(vision["processor"], vision["settings"], facts["path"]).has_newlines:
            words += f"; {NEWLINES.get(vision['newlines'], vision['newlines'])}"
    return words


def _saliency_words(facts: dict[str, Any]) -> str:
    """What a method goes by of the tower's own attention."""
    names = facts["vision"]["saliency"]
    return ", ".join(f"{name}: {INPUTS[name].words}" for name in names) or "none of the tower's attention is read"


def _picture_words(kv: dict[str, Any]) -> str:
    # At most: an image may have fewer visual tokens than the largest.
    unpruned = _size(kv["bytes_per_image_unpruned"])
    if kv["bytes_per_image"] is None:
        return f"a picture takes at most {unpruned}; how much, the rank of the attention says"
    words = f"a picture takes {_size(kv['bytes_per_image'])} instead of {unpruned}"
    if len(kv["layers_by_segment"]) == 1:
        return words
    parts = zip(kv["tokens_by_segment"], kv["layers_by_segment"], strict=True)
    spread = ", ".join(f"{tokens} in {_count(layers, 'layer')}" for tokens, layers in parts)
    return f"{words} ({spread}; {kv['tokens_per_layer']:.1f} a layer)"


def _capacity_words(kv: dict[str, Any]) -> str:
    images, unpruned = kv["images_at_capacity"], kv["images_at_capacity_unpruned"]
    words = _count(images, "picture") + (f" instead of {unpruned}" if images != unpruned else "")
    if len(kv["layers_by_segment"]) > 1:
        words += ", whatever --keep (the first layers read all tokens)"
    return f"{words}, and {_count(kv['text_at_capacity'], 'token')} of text and answer"


def _engine_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    engines, kv = facts["engines"], facts["kv"]
    if engines is None:
        return []
    rows, images = engines["max_batch_size"], engines["max_images"]
    more = [f"attention {engines['attention']}"]
    more += ["version compatible"] if engines["version_compatible"] else []
    more += ["weight streaming"] if engines["weight_streaming"] else []
    if engines["hardware_compatibility"] != "none":
        more.append(f"hardware compatibility {engines['hardware_compatibility']}")
    more += [f"plugin {name} {version}" for name, version in engines["plugins"].items()]
    size = sum(component["engine_bytes"] or 0 for component in facts["components"])
    return [
        ("engines", f"{facts['backend']} {engines['version']} for {', '.join(engines['targets'])}, {_size(size)}; "
                    + ", ".join(more)),
        ("serve", f"{_count(rows, 'row')} of {_count(images, 'picture')} and {engines['max_input_len']} text tokens; "
                  f"the cache takes {_size(rows * kv['bytes_at_capacity'])}"),
    ]  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _ranges(profile: dict[str, list[list[int]]]) -> str:
    """One line per tensor with its smallest, typical and largest shape; all layers' caches are one line."""
    lines: dict[str, str] = {}
    for name, shapes in profile.items():
        short = ".".join("*" if part.isdigit() else part for part in name.split("."))
        # Three equal sizes are printed once.
        sizes = dict.fromkeys("x".join(map(str, shape)) for shape in shapes)
        lines.setdefault(short, f"{short} {' '.join(sizes)}")
    return "\n".join(lines.values())


def _specs(specs: list[dict[str, Any]]) -> str:
    """One line per tensor; the two caches of all layers are one line."""
    lines, seen = [], set()
    for spec in specs:
        name = ".".join("*" if part.isdigit() else part for part in spec["name"].split("."))
        if name not in seen:
            seen.add(name)
            lines.append(f"{name} {spec['dtype']} [{', '.join(map(str, spec['shape']))}]")
    return "\n".join(lines)


def _file(root: Path, name: str) -> dict[str, Any]:
    status = (root / name).stat()
    return {"name": name, "bytes": status.st_size, "links": status.st_nlink}


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
