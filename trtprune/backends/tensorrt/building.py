"""A parsed network → an engine file, with progress, a way to interrupt it, and every logged error a failure.

TensorRT calls its progress monitor from its own threads and cannot be stopped from outside, so the build runs in a
thread of its own: an interrupt reaches the waiting main thread, and the monitor stops the build at its next step.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtprune.backends.tensorrt.flavour import Log, MessageRecord, one_line
from trtprune.backends.tensorrt.network import Network
from trtprune.engine_dir.schema import Profile
from trtprune.errors import BuildError

__all__ = ["BuilderSettings", "TimingCache", "build_engine", "served_capabilities"]

# (TensorRT's message, remedy)
HINTS = (
    (r"is_decomposable|[Aa]ttention operation was not supported", "--attention decomposed (for the vision tower: "
     "--lowering vision_attention=primitives) does without TensorRT's attention kernels"),
    (r"workspace limit|workspace size", "give the builder more room: --pool-limit workspace:4G"),
    (r"[Oo]ut ?[Oo]f ?[Mm]emory|cudaError 2\b", "free memory on the GPU, or build with a smaller --max-seq-len, "
     "--max-batch-size or --weight-dtype int8"),
    (r"HW-specific datatypes: b16", "--dtype float16: GPUs before sm80 have no bfloat16"),
    (r"FP32 GEMM is not supported", "--dtype float16, or leave sm75 out of --compute-capability"),
)  # fmt: skip


@dataclass(frozen=True)
class BuilderSettings:
    """Settings of the builder; the fields of ``EngineOptions`` with ``targets`` resolved."""

    targets: tuple[str, ...]
    builder_optimization_level: int | None = None
    pool_limit: Mapping[str, int] | None = None
    version_compatible: bool = False
    hardware_compatibility_level: str = "none"
    weight_streaming: bool = False
    profiling_verbosity: str = "layer_names_only"


class TimingCache:
    """Kernel timings for all components of a build; bytes in the library's own format."""

    def __init__(self, load: Path | None, save: Path | None) -> None:
        self.save_to = save
        self.wanted = load is not None or save is not None
        try:
            self.data = load.read_bytes() if load is not None else b""
        except OSError as error:
            raise BuildError(f"--load-timing-cache {load}: cannot be read: {error.strerror or error}") from None

    def attach(self, config: Any, record: MessageRecord) -> None:
        """Gives the timings to a builder."""
        cache = config.create_timing_cache(self.data)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            raise BuildError(
                f"--load-timing-cache: TensorRT does not take it: {record.why('made by another version or GPU')}",
                hint="leave it out; --save-timing-cache writes a new one",
            )

    def collect(self, config: Any) -> None:
        """Takes over the timings that a builder has added."""
        self.data = bytes(config.get_timing_cache().serialize())

    def save(self) -> None:
        """Writes the file of ``--save-timing-cache``."""
        if self.save_to is None:
            return
        try:
            self.save_to.write_bytes(self.data)
        except OSError as error:
            raise BuildError(f"--save-timing-cache {self.save_to}: {error.strerror or error}") from None


def served_capabilities(trt: Any) -> tuple[int, ...]:
    """The compute capabilities the library builds for without a GPU: 89 for sm89.  Empty for full TensorRT."""
    names = dir(getattr(trt, "ComputeCapability", object))
    return tuple(sorted(int(name[2:]) for name in names if re.fullmatch(r"SM\d+", name)))


def build_engine(
    network: Network,
    log: Log,
    profiles: Sequence[Profile],
    settings: BuilderSettings,
    path: Path,
    *,
    timing_cache: TimingCache | None = None,
    live: Callable[[str], None] | None = None,
) -> tuple[Profile, ...]:
    """Builds and writes an engine.

    Args:
        network: The checked network; its weights are read now.
        log: The library's log.
        profiles: The component's profiles.
        settings: Settings of the builder.
        path: The file to write.
        timing_cache: Timings to read and to extend; None for a library without a timing cache.
        live: Called with the current phase, many times per second.

    Returns:
        The profiles of the engine: ``profiles`` without the values of inputs whose values decide no shape.

    Raises:
        BuildError: with the first error TensorRT logged.
        OSError: if the file cannot be written.
    """
    trt = network.trt
    with log.recording() as record:
        config = network.builder.create_builder_config()
        _configure(trt, config, settings, network.component)
        used = tuple(_add_profile(network, config, profile, record) for profile in profiles)
        if timing_cache is not None and timing_cache.wanted:
            timing_cache.attach(config, record)
        if record.errors:
            raise _failure(network, settings, record)
        monitor = _make_monitor(trt, live)
        config.progress_monitor = monitor
        written = _run(network, config, path, monitor)
        if not written or record.errors:
            path.unlink(missing_ok=True)
            raise _failure(network, settings, record)
        if timing_cache is not None and timing_cache.wanted:
            timing_cache.collect(config)
    return used


def _configure(trt: Any, config: Any, settings: BuilderSettings, component: str) -> None:
    flags = trt.BuilderFlag
    if served_capabilities(trt):  # TensorRT for RTX; the other builds for the device that is current
        config.num_compute_capabilities = len(settings.targets)
        for place, target in enumerate(settings.targets):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), place):
                raise BuildError(f"{component}: {trt.__name__} does not take --compute-capability {target}")
    # TF32 rounds the inputs of float32 products to 10 bits, but float32 in our graphs is there for exact results.
    config.clear_flag(flags.TF32)
    if settings.builder_optimization_level is not None:
        config.builder_optimization_level = settings.builder_optimization_level
    for pool, size in (settings.pool_limit or {}).items():
        kind = getattr(trt.MemoryPoolType, pool.upper(), None)
        if kind is None:
            known = ", ".join(sorted(name.lower() for name in trt.MemoryPoolType.__members__))
            raise BuildError(f"--pool-limit {pool}: {trt.__name__} has no such pool", hint=f"it has: {known}")
        config.set_memory_pool_limit(kind, size)
    if settings.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if settings.hardware_compatibility_level != "none":
        level = getattr(trt.HardwareCompatibilityLevel, settings.hardware_compatibility_level.upper())
        config.hardware_compatibility_level = level
    if settings.weight_streaming:
        config.set_flag(flags.WEIGHT_STREAMING)
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, settings.profiling_verbosity.upper())


def _add_profile(network: Network, config: Any, wanted: Profile, record: MessageRecord) -> Profile:
    made = network.builder.create_optimization_profile()
    values, inputs = network.shape_inputs(), set(network.input_names())
    used: Profile = {}
    for name, shapes in wanted.items():
        if name == "keep" and name not in values:
            continue  # a method that keeps all tokens reads no budget
        if name not in inputs:
            raise BuildError(f"{network.component}: the network has no input '{name}'")
        try:
            if name in values:
                made.set_shape_input(name, *shapes)
            else:
                made.set_shape(name, *shapes)
        except (ValueError, RuntimeError) as error:
            raise BuildError(f"{network.component}: profile of '{name}': {one_line(error)}") from None
        used[name] = shapes
    missing = values - used.keys()
    if missing or config.add_optimization_profile(made) < 0:
        why = f"no range for the values of {sorted(missing)[0]}" if missing else record.why()
        raise BuildError(f"{network.component}: TensorRT does not take the optimisation profile: {why}")
    return used


def _make_monitor(trt: Any, live: Callable[[str], None] | None) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Reports the innermost phase; ``cancelled`` stops the build at its next step."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = threading.Event()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(f"{phase_name} {step + 1}/{self._steps.get(phase_name, step + 1)}")
            return not self.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _tell(self, text: str) -> None:
            if live is not None:
                live(text)

    return Monitor()


def _run(network: Network, config: Any, path: Path, monitor: Any) -> bool:
    """Builds in a thread; True if an engine was written."""
    outcome: list[Any] = []
    # Not Thread.join: after an interrupt it assumes in Python 3.9 to 3.12 that the thread has ended
    # (github.com/python/cpython issue 90882); a builder that calls back into a finished interpreter ends the process.
    ended = threading.Event()

    def work() -> None:
        try:
            outcome.append(_write(network, config, path))
        except BaseException as error:  # handed to the caller's thread
            outcome.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=work, name="tensorrt-build", daemon=True)
    interrupt: BaseException | None = None
    with _signals_into([]) as early:
        thread.start()  # waits for the thread to start; a signal there would leave the thread behind
    while True:
        try:
            while early:
                signal.raise_signal(early.pop())
            while not ended.wait(0.1):
                pass
            break
        except BaseException as error:  # Ctrl-C, SIGTERM, perhaps again: the builder must let go of everything first
            interrupt = interrupt or error
            monitor.cancelled.set()
    if interrupt is not None:
        raise interrupt
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return bool(outcome[0])


@contextlib.contextmanager
def _signals_into(caught: list[int]) -> Iterator[list[int]]:
    """Records SIGINT and SIGTERM instead of calling their handlers; only the main thread has handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    # A handler that is not Python's (None) could not be restored.
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(network: Network, config: Any, path: Path) -> bool:
    trt: Any = network.trt
    builder = network.builder
    if not hasattr(builder, "build_serialized_network_to_stream"):
        engine = builder.build_serialized_network(network.network, config)
        if engine is not None:
            path.write_bytes(engine)
        return engine is not None
    with path.open("wb") as stream:
        failed: list[OSError] = []

        class Writer(trt.IStreamWriter):
            def __init__(self) -> None:
                trt.IStreamWriter.__init__(self)

            def write(self, data: bytes) -> int:
                try:
                    return stream.write(data)
                except OSError as error:  # a full disk: TensorRT itself would call a short write a success
                    failed.append(error)
                    return 0

        done = builder.build_serialized_network_to_stream(network.network, config, Writer())
        if failed:
            raise failed[0]
        return bool(done) and stream.tell() > 0


def _failure(network: Network, settings: BuilderSettings, record: MessageRecord) -> BuildError:
    why = record.why()
    hint = next((hint for pattern, hint in HINTS if re.search(pattern, why)), "-v shows TensorRT's warnings too")
    # "IBuilder::… Error Code 1: Myelin (… In compileGraph at /_src/…)": the place in their sources does not help here.
    why = re.sub(r" In \w+ at /\S+?\)", ")", re.sub(r"^\S+: (?=Error Code)", "", why))
    target = ", ".join(settings.targets)
    library = f"{network.trt.__name__} {network.trt.__version__}"
    return BuildError(f"{network.component}: {library} cannot build it for {target}: {why}", hint=hint)
