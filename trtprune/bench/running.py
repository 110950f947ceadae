"""A bench from the engine directory to the numbers: every build and peer, in one interleaved run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.bench.bandwidth import bandwidth_probes
from trtprune.bench.cells import BuildCell, Cell, Sample, Workload
from trtprune.bench.cost import Call, Cost, Ledger, Reading, listen, token_calls
from trtprune.bench.interleave import interleave
from trtprune.bench.machine import cache_bytes
from trtprune.bench.memory import measure_peaks
from trtprune.bench.products import ProductProbes
from trtprune.errors import BackendError, BudgetError, CheckpointError
from trtprune.reports.reporter import SILENT, Report, Reporter, reporter_of
from trtprune.variants import Variant, Variants, planning, warnings_only

if TYPE_CHECKING:
    from PIL import Image

    from trtprune.backends.running import Running
    from trtprune.bench.floor import Probe
    from trtprune.bench.settings import BenchSettings
    from trtprune.engine_dir import EngineDir
    from trtprune.runtime import Vlm

__all__ = ["Measured", "Run", "run_bench"]

SCENE = 1000
"""Seed of the generated scene that is used without an image."""


@dataclass
class Measured:
    """A cell with its measurements.

    Attributes:
        cell: The cell.
        baseline: The cell with all visual tokens in the same runtime, the base of speed-ups.
        samples: Samples of all rounds.
        prompt: Cost of its prompt, call by call.
        token: Cost of the first decode step of its answer.
        products: The probes of each call, for the speed of its products.
        peak: Peak memory in bytes.
    """

    cell: Cell
    baseline: bool = False
    samples: list[Sample] = field(default_factory=list)
    prompt: list[tuple[Call, Cost]] = field(default_factory=list)
    token: list[tuple[Call, Cost]] = field(default_factory=list)
    products: dict[Call, Sequence[Probe]] = field(default_factory=dict)
    peak: int | None = None


@dataclass(frozen=True)
class Run:
    """A finished bench.

    Attributes:
        cells: In the order of the table.
        products: Probes of products.
        bandwidth: Probes of the ways to move bytes; none if the machine's rates were not measured.
        notes: For the reader.
        cache_bytes: What may have been in the processor's caches, and so need not have moved.
    """

    engine: dict[str, str]
    provider: str
    threads: int | None
    settings: BenchSettings
    cells: list[Measured]
    products: Sequence[Probe]
    bandwidth: Sequence[Probe]
    notes: list[str]
    cache_bytes: int = 0


def run_bench(directory: Path, settings: BenchSettings, report: Report = SILENT) -> Run:
    """Runs a bench.

    Args:
        directory: The engine directory.
        settings: Settings of the bench.
        report: Called with (what, message).

    Raises:
        BudgetError: for a method or budget that cannot be served.
        BackendError: if a runtime, peer or device is missing.
        InputError: for an image that cannot be used.
    """
    say = reporter_of(report)
    running = settings.running
    with Variants(
        directory,
        running,
        others=settings.others,
        model=settings.checkpoint,
        build_options=settings.build_options,
        report=warnings_only(say),
    ) as variants:
        plan, named, notes = _plan(variants, settings)
        source = _peer_source(variants.base, settings)
        question = Workload(load_question_image(settings.image), settings.prompt, settings.tokens)
        cells = [_baseline(variants, question, notes)]
        cells += _build_cells(variants, plan, named, question, notes, say)
        threads = _threads(running.threads, cells[0])
        cells += _peers(settings.against, variants, question, threads, source)
        products, bandwidth = _count(cells, threads, running.provider_options)
        runs = len(cells) * (settings.warmup + settings.rounds)
        say("cells", f"{len(cells)}, {settings.warmup} + {settings.rounds} rounds: {runs} answers to measure")
        samples = interleave(
            [measured.cell for measured in cells],
            [*products, *bandwidth],
            rounds=settings.rounds,
            warmup=settings.warmup,
            seed=settings.seed,
            report=say,
        )
        for measured, found in zip(cells, samples, strict=True):
            measured.samples = found
        notes += _same_question(cells)
        if settings.memory:
            notes += _peaks(cells, question, replace(running, threads=threads), source, say)
        base = variants.base
        engine = {"model": base.model.id, "digest": base.model.digest, "build_digest": base.build_digest}
        engine |= {"method": variants.own.label, "dtype": base.weight_dtype or base.dtype, "backend": base.backend}
        used = _vlm(cells[0]).provider
        return Run(engine, used, threads, settings, cells, products, bandwidth, notes, cache_bytes())


def _plan(variants: Variants, settings: BenchSettings) -> tuple[list[tuple[Variant, int]], bool, list[str]]:
    """(method, budget) of every cell, whether the methods were named one by one, and notes for the reader."""
    chosen, named = planning.choose_variants(settings.methods, variants.own, tower=variants.tower)
    budgets = planning.choose_budgets(settings.keeps, variants.base)
    plan, notes = planning.plan_cells(variants, chosen, budgets, named=named)
    generation = variants.base.generation
    rules = generation.rules()
    if rules:
        notes.append(f"answers are greedy, with what the checkpoint's {generation.source} asks for: {', '.join(rules)}")
    return plan, named, notes


def _peer_source(base: EngineDir, settings: BenchSettings) -> Path | None:
    """The checkpoint for transformers, if that is a peer.

    Raises:
        BackendError: if a peer is not installed.
    """
    if "openvino" in settings.against:
        from trtprune.bench.openvino_peer import require_openvino

        require_openvino()
    if "transformers" not in settings.against:
        return None
    from trtprune.bench.transformers_peer import require_transformers

    require_transformers()
    from trtprune.checkpoint.origin import find_checkpoint

    return find_checkpoint(base, settings.checkpoint).path


def _build_cells(
    variants: Variants,
    plan: Sequence[tuple[Variant, int]],
    named: bool,
    question: Workload,
    notes: list[str],
    report: Reporter,
) -> list[Measured]:
    """The cells of all builds; one that cannot be built is an error if it was named, and else a note."""
    cells = []
    for variant in dict.fromkeys(variant for variant, _ in plan):
        report("build", variant.label)
        try:
            vlm = variants.open(variant)
        except BudgetError as error:
            if named:
                raise
            notes.append(f"{variant.label}: {error.flag_message}")
            continue
        for keep in (keep for other, keep in plan if other == variant):
            cell = BuildCell(vlm, variant.label, vlm.check_keep(keep), question)
            if cell.keep < keep or keep == _visual_tokens(vlm, question):
                # Nothing would be pruned: the same as the unpruned line, twice.
                notes.append(f"{variant.label} {keep} is left out: the image has {cell.keep} visual tokens")
            else:
                cells.append(Measured(cell))
    return cells


def _visual_tokens(vlm: Vlm, question: Workload) -> int:
    """Visual tokens of the image, before pruning."""
    return vlm.pipeline.processor.plan(question.image.height, question.image.width).tokens


def load_question_image(path: str | Path | None) -> Image.Image:
    """The image, or a generated scene, in RGB."""
    if path is None:
        from trtprune.demo import scenes

        return scenes.generate(SCENE, split="test").image
    from trtprune.runtime.pictures import load_picture, max_pixels_from

    return load_picture(path, max_pixels_from(None), urls=True).convert("RGB")


def _vlm(measured: Measured) -> Vlm:
    assert isinstance(measured.cell, BuildCell)
    return measured.cell.vlm


def _threads(threads: int | None, baseline: Measured) -> int | None:
    """Threads of the runtime, if it has such a setting."""
    from trtprune.backends.onnxruntime.threads import available_threads

    return threads or (available_threads() if _vlm(baseline).provider in ("cpu", "openvino") else None)


def _baseline(variants: Variants, question: Workload, notes: list[str]) -> Measured:
    """The cell with all visual tokens: method ``none``, or the build's own if no other can be built here."""
    total = variants.base.model.visual_tokens
    try:
        none = Variant.make("none")
        return Measured(BuildCell(variants.open(none), none.label, total, question), baseline=True)
    except (BackendError, CheckpointError) as error:
        if variants.base.pruning.keep_range[1] < total:
            raise
        own = variants.own
        notes.append(f"unpruned is {own.label} with all {total} tokens, its pruner included: {error.flag_message}")
        return Measured(BuildCell(variants.open(own), own.label, total, question), baseline=True)


def _peers(
    against: Sequence[str], variants: Variants, question: Workload, threads: int | None, source: Path | None
) -> list[Measured]:
    found: list[Cell] = []
    if source is not None:
        from trtprune.bench.transformers_peer import DTYPES, TransformersPeer

        found += [TransformersPeer(source, dtype, question, threads=threads) for dtype in DTYPES]
    if "openvino" in against:
        from trtprune.bench.openvino_peer import openvino_cells

        found += openvino_cells(variants, question, threads)
    return [Measured(cell) for cell in found]


def _count(
    cells: Sequence[Measured], threads: int | None, options: Mapping[str, str] | None
) -> tuple[Sequence[Probe], Sequence[Probe]]:
    """Runs every build's prompt once and records its cost; returns the probes of its floor."""
    from trtprune.backends.opening import open_provider

    ledger, products, bandwidth = Ledger(), None, []
    provider = _vlm(cells[0]).provider
    # A GPU's rates cannot be measured here: times of products would include the transfers.
    if provider in ("cpu", "openvino"):
        backend = open_provider(provider, threads, options)
        products, bandwidth = ProductProbes(backend), bandwidth_probes(backend, threads or 1)
    for measured in cells:
        if not isinstance(measured.cell, BuildCell):
            continue
        vlm = measured.cell.vlm
        with listen(vlm) as calls:
            measured.cell.prompt()
        made = vlm.config
        for token, counted in ((False, calls), (True, token_calls(calls))):
            costs = []
            for call in counted:
                reading = Reading.of(vlm.provider, call.part.role, options or {})
                costs.append((call, ledger.cost(made, call, token=token, reading=reading)))
                if products is not None and not measured.cell.peer:
                    probes = products.of(ledger.counted(made, call), made.root / "onnx", call.part.role)
                    measured.products[call] = probes
            measured.token, measured.prompt = (costs, measured.prompt) if token else (measured.token, costs)
    return list(products or ()), bandwidth


def _same_question(cells: Sequence[Measured]) -> list[str]:
    """Differences between a peer's question or answer and ours, as notes."""
    notes, ours = [], cells[0].samples[0]
    for measured in cells:
        if not measured.cell.peer:
            continue
        theirs, name = measured.samples[0], measured.cell.method
        if theirs.prompt_tokens != ours.prompt_tokens:
            notes.append(f"{name}: its prompt has {theirs.prompt_tokens} tokens, ours {ours.prompt_tokens}")
        same = [a == b for a, b in zip(theirs.token_ids, ours.token_ids, strict=False)]
        words = f"the same {len(same)} tokens as unpruned"
        if not all(same):
            words = f"other tokens than unpruned from number {same.index(False) + 1} of {len(same)} on"
        notes.append(f"{name}: answers {words}")
    return notes


def _peaks(
    cells: Sequence[Measured], question: Workload, running: Running, checkpoint: Path | None, report: Reporter
) -> list[str]:
    """Runs each build in a process of its own; returns notes about missing measurements."""
    notes = []
    groups: dict[str, list[Measured]] = {}
    for measured in cells:
        groups.setdefault(measured.cell.method, []).append(measured)
    with tempfile.TemporaryDirectory(prefix="trtprune-") as folder:
        picture = Path(folder) / "picture.png"
        question.image.save(picture)
        for number, (label, group) in enumerate(groups.items(), 1):
            report.live(f"peak memory, {number} of {len(groups)}: {label}")
            job: dict[str, Any] = {
                "image": str(picture), "prompt": question.prompt, "tokens": question.tokens,
                "threads": running.threads, "keeps": [measured.cell.budget for measured in group],
            }  # fmt: skip
            peaks, why = measure_peaks(job | _job_of(group[0].cell, running, checkpoint))
            for measured in group:
                measured.peak = peaks.get(measured.cell.budget)
            if why:
                notes.append(f"peak memory of {label}: {why}")
    return notes


def _job_of(cell: Cell, running: Running, checkpoint: Path | None) -> dict[str, Any]:
    """What a process has to know to run a cell: see :func:`trtprune.bench.memory.run_job`."""
    if not isinstance(cell, BuildCell):
        return {"checkpoint": str(checkpoint), "dtype": cell.method.split()[-1]}
    job: dict[str, Any] = {"directory": str(cell.vlm.config.root)}
    if cell.peer:
        from trtprune.bench.openvino_peer import PRECISIONS

        return job | {"provider": "openvino", "provider_options": {"precision": PRECISIONS[cell.method]}}
    return job | {"provider": running.provider, "provider_options": dict(running.provider_options)}
