"""The largest magnitudes of the decoder's features, from an unpruned float32 run of a few prompts about pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from trtprune.arguments import arg
from trtprune.errors import BuildError, CheckpointError, InputError, shown

if TYPE_CHECKING:
    import onnx

    from trtprune.checkpoint import Checkpoint, TensorInfo
    from trtprune.compiler.request import BuildRequest
    from trtprune.compiler.smoothing import Smoothing
    from trtprune.engine_dir import EngineDir
    from trtprune.models.spec import ScaledFeatures
    from trtprune.reports.reporter import Report
    from trtprune.runtime import Request

__all__ = ["BUILT_IN", "calibrated", "calibration_digest", "calibration_requests", "measure"]

BUILT_IN = "built-in"
"""The name of the calibration without a file."""
LEAST_REQUESTS = 4
MOST_REQUESTS = 64
PROMPTS = (
    "Describe the picture in detail.",
    "What is in the picture?",
    "How many people are there, and what do they do?",
    "Write a short story of three sentences about what you see.",
    "Which colors are there?",
    "Read the text in the image.",
)
SIDES = (8, 336, 2)
"""Random colours on a side of the built-in pictures, which are enlarged from them."""
PICTURE = 336
OUTPUT = "largest_"


def calibration_digest(file: str | os.PathLike[str] | None) -> str:
    """What a calibration goes by: ``built-in``, or SHA-256 of the file in hexadecimal digits.

    Raises:
        BuildError: if the file cannot be read.
    """
    if file is None:
        return BUILT_IN
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise BuildError(f"{arg('calibration', file)}: cannot be read: {error.strerror or error}") from None


def calibration_requests(file: str | os.PathLike[str] | None) -> list[Request]:
    """The requests of a file as of ``run --requests``, up to :data:`MOST_REQUESTS`; without one, the built-in ones.

    Raises:
        BuildError: for a row that cannot be answered or has no picture, or too few rows.
    """
    if file is None:
        return list(_built_in())
    from trtprune.runtime import Request
    from trtprune.runtime.requests import FORM, RequestFile

    requests = []
    flag = arg("calibration")
    try:
        with RequestFile(Path(file)) as rows:
            for row in rows:
                if row.fault or not row.images:
                    raise BuildError(f"{flag} {file}:{row.number}: {row.fault or 'no picture'}", hint=FORM)
                requests.append(Request(list(row.images), row.prompt))
                if len(requests) == MOST_REQUESTS:
                    break
    except InputError as error:
        raise BuildError(f"{flag} {error.message}", hint=error.hint) from None
    if len(requests) < LEAST_REQUESTS:
        count = f"{len(requests)} request{'' if len(requests) == 1 else 's'}"
        raise BuildError(
            f"{flag} {file}: {count} with a picture, and {LEAST_REQUESTS} are the fewest",
            hint=f"more lines of {FORM}, or leave {flag} out for the built-in requests",
        )
    return requests


def _built_in() -> Iterator[Request]:
    """Questions in English about random colours, coarse and fine."""
    from PIL import Image

    from trtprune.runtime import Request

    generator = np.random.Generator(np.random.PCG64(0))
    for number, prompt in enumerate(PROMPTS):
        side = SIDES[number % len(SIDES)]
        colours = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        yield Request(Image.fromarray(colours).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC), prompt)


def calibrated(
    own: BuildRequest,
    checkpoint: Checkpoint,
    tensors: Mapping[str, TensorInfo],
    groups: Sequence[ScaledFeatures],
    staging: Path,
    report: Report,
    build: Callable[[BuildRequest], EngineDir],
) -> Smoothing | None:
    """The smoothing of ``groups``, from a run of an unpruned float32 build; None where there are none.

    Args:
        own: The request of the build.
        checkpoint: Its checkpoint, and ``tensors`` of it by canonical name.
        groups: Features whose scales are moved.
        staging: Folder for that build, which is removed again; its weights are links.
        report: Told of the run.
        build: Builds without a word.
    """
    if not groups:
        return None
    from trtprune.compiler.request import BuildRequest
    from trtprune.compiler.smoothing import smooth

    requests = calibration_requests(own.calibration)
    report("weights", f"calibration: {len(requests)} requests in float32")
    with TemporaryDirectory(prefix="calibration-", dir=staging) as folder:
        request = BuildRequest(
            own.model,
            Path(folder) / "float32",
            method="none",
            layout=own.layout,
            min_image_pixels=own.min_image_pixels,
            max_image_pixels=own.max_image_pixels,
            weights="link",
            revision=own.revision,
            allow_extra_tensors=own.allow_extra_tensors,
        )
        names = {key: tensors[key].name for group in groups for key in group.readers}
        largest = measure(build(request), groups, names, requests)
    return smooth(groups, largest, lambda key: checkpoint.read(tensors[key].name))


def measure(
    directory: EngineDir,
    groups: Sequence[ScaledFeatures],
    names: Mapping[str, str],
    requests: Iterable[Request],
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Largest magnitude of each feature over all tokens of all requests, float32 [features], by the writer's name.

    Args:
        directory: An unpruned float32 build for ONNX Runtime; its decoder's graph is replaced by one that measures.
        groups: What is measured.
        names: Canonical name → name of the tensor in the graphs.
        requests: Prompts with pictures.
        threads: As in ``load``.

    Raises:
        CheckpointError: naming the writer of features that are infinite or no numbers.
    """
    from trtprune.backends.opening import open_backend
    from trtprune.engine_dir import TensorSpec
    from trtprune.engine_dir.roles import DECODER
    from trtprune.runtime.pictures import max_pixels_from
    from trtprune.runtime.vlm import Vlm

    part = directory.part(DECODER)
    outputs = _add_outputs(directory.path(part.onnx), {g.writer: names[g.readers[0]] for g in groups})
    specs = tuple(TensorSpec(output, "float32", ("features",)) for output in outputs.values())
    components = [replace(c, outputs=c.outputs + specs) if c is part else c for c in directory.components]
    found: dict[str, np.ndarray] = {}

    class Measured:
        """The decoder's session, whose further outputs are taken from its results."""

        def __init__(self, session: Any) -> None:
            self._session = session

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def run(self, inputs: Any, cache: Any = None) -> dict[str, Any]:
            results = dict(self._session.run(inputs, cache))
            for writer, output in outputs.items():
                largest = results.pop(output)
                if not np.isfinite(largest).all():
                    raise CheckpointError(
                        f"calibration: features behind {shown(writer)} are infinite or no numbers",
                        hint="a damaged download? fetch the checkpoint again",
                    )
                found[writer] = np.maximum(found[writer], largest) if writer in found else largest
            return results

    backend = open_backend(directory, threads=threads)
    vlm = Vlm(replace(directory, components=tuple(components)), backend, max_pixels=max_pixels_from(None))
    with vlm, vlm.chain.wrapped(lambda component, own: Measured(own) if component.role == DECODER else own):
        for request in requests:
            vlm.generate_batch([request], max_new_tokens=1)
    return found


def _add_outputs(path: Path, readers: Mapping[str, str]) -> dict[str, str]:
    """Adds an output for the features that each matrix reads; returns its name for each key of ``readers``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from trtprune.engine_dir.graphs import read_graph

    model = read_graph(path)
    graph = model.graph
    features = _features_of(graph)
    axes = f"{OUTPUT}axes"
    graph.initializer.append(numpy_helper.from_array(np.array([0, 1]), axes))
    outputs = {}
    for number, (writer, reader) in enumerate(readers.items()):
        outputs[writer] = name = f"{OUTPUT}{number}"
        graph.node.append(helper.make_node("Abs", [features[reader]], [f"{name}_abs"]))
        graph.node.append(helper.make_node("ReduceMax", [f"{name}_abs", axes], [name], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["features"]))
    onnx.save(model, path)
    return outputs


def _features_of(graph: onnx.GraphProto) -> dict[str, str]:
    """Matrix → the value it is multiplied with, by the names in the graph."""
    written = {output: node for node in graph.node for output in node.output}
    stored = {tensor.name for tensor in graph.initializer}
    features = {}
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        name = node.input[1]
        while name in written and written[name].op_type in ("Transpose", "Cast"):
            name = written[name].input[0]
        if name in stored:
            features[name] = node.input[0]
    return features
