"""The methods of a comparison on one engine directory: each a build of its own, from that directory's weights.

``eval`` and ``bench`` compare methods. They run real builds: the graphs of each method are written (in a second; the
weights are linked, not copied) and run by the same runtime.
Sessions with equal graphs, such as the decoder of all methods that prune before it, are opened once.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trtprune import pruning
from trtprune.backends.running import Running
from trtprune.engine_dir.graphs import graph_digest
from trtprune.engine_dir.paths import hub_blobs
from trtprune.errors import BackendError, BudgetError, EngineDirError
from trtprune.pruning.base import WITH_CLS, TowerTraits
from trtprune.pruning.inputs import takes_newlines

if TYPE_CHECKING:
    import os

    from trtprune.backends.base import Backend, Memory, Session, Step
    from trtprune.engine_dir import ComponentInfo, EngineDir
    from trtprune.runtime import Vlm

__all__ = ["Variant", "Variants", "parse_variants", "split_methods", "warnings_only"]


@dataclass(frozen=True)
class Variant:
    """A method with all its options, so that equal variants compare equal."""

    method: str
    options: tuple[tuple[str, str | int | float], ...] = ()

    @classmethod
    def make(
        cls, method: str, options: Mapping[str, object] | None = None, *, tower: TowerTraits = WITH_CLS
    ) -> Variant:
        """A method with these options and the defaults of the others.

        Args:
            method: Its name.
            options: The options that are set.
            tower: What the model's vision tower is, which decides defaults.

        Raises:
            BudgetError: for an unknown method or option.
        """
        return cls(method, tuple(pruning.get(method).complete_options(options, tower).items()))

    @classmethod
    def parse(cls, text: str, *, tower: TowerTraits = WITH_CLS) -> Variant:
        """``METHOD[:OPTION=VALUE]…``, e.g. ``divprune:center=true``; ``tower`` as in :meth:`make`.

        Raises:
            BudgetError: naming the fault.
        """
        method, *settings = re.split(r":(?=\w+=|$)", text.strip())  # a value may have colons: schedule=2:66
        pruning.get(method)
        pairs = [setting.partition("=") for setting in settings]
        if not all(equals for _, equals, _ in pairs):
            raise BudgetError(f"--methods {text}: ends with a colon", hint="METHOD:OPTION=VALUE:OPTION=VALUE")
        return cls.make(method, {name: value for name, _, value in pairs}, tower=tower)

    @property
    def label(self) -> str:
        """The method, and the options that differ from their defaults: ``divprune center=true``."""
        defaults = pruning.get(self.method).validate_options()
        return " ".join([self.method, *(f"{k}={v}" for k, v in self.options if v != defaults[k])])


def split_methods(text: str) -> list[str]:
    """The methods, each with its options, of a comma-separated list."""
    # A value may have commas (schedule=2:66,6:30), but a name is behind a comma that separates.
    return [part for part in re.split(r",(?=\s*(?:[a-z]|$))", text) if part.strip()]


def parse_variants(text: str, *, tower: TowerTraits = WITH_CLS) -> list[Variant]:
    """A comma-separated list of :meth:`Variant.parse`, without duplicates.

    Raises:
        BudgetError: for an unknown method or option, or an empty list.
    """
    parts = split_methods(text)
    if not parts:
        raise BudgetError("--methods: names no method", hint=f"some of {', '.join(pruning.names())}")
    return list(dict.fromkeys(Variant.parse(part, tower=tower) for part in parts))


def warnings_only(report: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """A report that passes on warnings only, each once, because all builds read the same CLIP."""
    said = set()

    def say(what: str, message: str) -> None:
        if message.startswith("warning") and (what, message) not in said:
            said.add((what, message))
            report(what, message)

    return say


class Variants:
    """Opens methods on the weights of one engine directory; a context manager that removes its builds.

    Args:
        directory: The base, an engine directory.
        running: Provider, threads and checks, the same for all methods.
        others: Engine directories of the same model with other methods; needed if a build is impossible here or takes
            too long, such as TensorRT engines.
        max_pixels: As for :func:`trtprune.runtime.load`.
        model: The checkpoint, if the base cannot replace it (quantised weights).
        build_options: Further arguments of :func:`trtprune.build` for the builds, e.g. ``clip``.
        report: Called with (component, message) during builds.

    Raises:
        EngineDirError, BackendError: as for ``load``.
        BudgetError: if one of ``others`` has another model.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        running: Running | None = None,
        *,
        others: Sequence[str | os.PathLike[str]] = (),
        max_pixels: int | None = None,
        model: str | os.PathLike[str] | None = None,
        build_options: Mapping[str, Any] | None = None,
        report: Callable[[str, str], None] | None = None,
    ) -> None:
        from trtprune.engine_dir import open_engine_dir
        from trtprune.runtime.pictures import max_pixels_from

        self._running = running or Running()
        self.base = open_engine_dir(directory, verify=self._running.verify)
        self._max_pixels = max_pixels_from(max_pixels)
        self._model = model
        self._build_options = dict(build_options or {})
        self._report = report
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0
        self._built: dict[Variant, EngineDir] = {variant_of(self.base): self.base}
        self._open: dict[Variant, Vlm] = {}
        self._sessions: dict[tuple[str, ...], Session] = {}
        self._digests: dict[str, str] = {}
        self._users: dict[tuple[str, ...], set[Variant]] = {}
        self._backend: Backend | None = None
        for path in others:
            other = open_engine_dir(path, verify=self._running.verify)
            if (other.model.digest, other.dtype, other.backend) != (
                self.base.model.digest,
                self.base.dtype,
                self.base.backend,
            ):
                raise BudgetError(
                    f"{path}: not built from the model, with the dtype and for the backend of {directory}",
                    hint="build both alike, but for --method",
                )
            self._built.setdefault(variant_of(other), other)

    def __enter__(self) -> Variants:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes every session and removes the builds."""
        for variant in list(self._open):
            self.release(variant)
        self._sessions.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def own(self) -> Variant:
        """The base's method and options."""
        return variant_of(self.base)

    @property
    def tower(self) -> TowerTraits:
        """What the model's vision tower is."""
        return TowerTraits.of(self.base.model)

    def there(self, variant: Variant) -> bool:
        """Whether a variant exists without a new build."""
        return variant in self._built

    def config(self, variant: Variant) -> EngineDir:
        """The engine directory of a variant; built now if it does not exist.

        Raises:
            BudgetError: if the model cannot serve the method.
            CheckpointError: if the base's weights differ from its checkpoint's and ``model`` is None.
            BackendError: if the base has engines, which are not built here.
        """
        if variant not in self._built:
            self._built[variant] = self._build(variant)
        return self._built[variant]

    def build_for(self, provider: str, variant: Variant) -> EngineDir:
        """A new build of a variant for another provider; raises as :meth:`config`."""
        return self._build(variant, provider)

    def open(self, variant: Variant) -> Vlm:
        """An opened variant; the same object until it is released. Raises as :meth:`config`."""
        from trtprune.runtime import Vlm

        if variant not in self._open:
            config = self.config(variant)
            vlm = Vlm(config, _Shared(self, variant, config), max_pixels=self._max_pixels)
            decoder = vlm.pipeline.decoder
            for other in self._open.values():
                if other.pipeline.decoder.identity == decoder.identity:
                    decoder.share_memory(other.pipeline.decoder)
                    break
            self._open[variant] = vlm
        return self._open[variant]

    def release(self, variant: Variant) -> None:
        """Closes an opened variant, and the sessions that no other open one uses."""
        self._open.pop(variant, None)
        for key in [key for key, users in self._users.items() if variant in users]:
            self._users[key].discard(variant)
            if not self._users[key]:
                del self._users[key], self._sessions[key]

    def _build(self, variant: Variant, provider: str | None = None) -> EngineDir:
        from trtprune.compiler.building import build

        base = self.base
        if base.backend != "onnxruntime" and self._running.provider is None:
            raise BackendError(
                f"{base.root}: holds {base.backend} engines of method {base.pruning.method}, not of {variant.method}",
                hint=f"trtprune build --method {variant.method} … -o OTHER, and --with OTHER",
            )
        if self._folder is None:
            # Beside the base, because links do not work across file systems; in the hub's cache, where every folder
            # beside it is a commit, beside its blobs.
            root = base.root.resolve()
            beside = (hub_blobs(root) or root).parent
            try:
                self._folder = tempfile.TemporaryDirectory(prefix=".variants-", dir=beside)
            except OSError:
                self._folder = tempfile.TemporaryDirectory(prefix="trtprune-")
        own = pruning.get(variant.method).own_positions(dict(variant.options))
        positions = base.positions.rule if variant.method == base.pruning.method and own is None else None
        built_for = base.built_with.get("provider", "cpu")
        provider = provider or self._running.provider or built_for
        self._count += 1
        return build(
            self._model if self._model is not None else base.root,
            Path(self._folder.name) / f"{self._count}-{variant.method}",
            method=variant.method,
            options=dict(variant.options),
            positions=positions,
            layout=base.vision.settings.get("layout"),
            **_image_pixels(base),
            newlines=_newlines(base, variant),
            provider=provider,
            dtype=base.dtype,
            weight_dtype=base.weight_dtype,
            activation_dtype="int8" if base.lowering.get("activations") == "int8" else "float32",
            max_seq_len=base.kv.capacity if base.backend == "onnxruntime" else None,
            # The lowering is the provider's, with the changes of the base's build if it has the same provider.
            lowering=base.lowering if provider == built_for else None,
            generation_config="ignore" if base.generation.source == "ignored" else "checkpoint",
            report=self._report,
            **{"weights": "link", **self._build_options},
        )

    def graph_digest_of(self, config: EngineDir, component: ComponentInfo) -> str:
        """The digest of a graph's computation; equal for builds that can share a session or its results."""
        # Not the file's digest, because the file names its build.
        content = config.files[component.onnx]
        if content not in self._digests:
            self._digests[content] = graph_digest(config.path(component.onnx))
        return self._digests[content]

    # -- for the backends of the runtime

    def backend(self, config: EngineDir) -> Backend:
        """The backend of a directory: one for all directories, unless it belongs to a single one."""
        from trtprune.backends.opening import open_backend

        engines = config.backend != "onnxruntime" and self._running.provider is None
        if self._backend is not None and not engines:
            return self._backend
        how = self._running
        backend = open_backend(config, provider=how.provider, threads=how.threads, options=how.provider_options)
        if not engines:
            self._backend = backend
        return backend

    def session(self, variant: Variant, config: EngineDir, backend: Backend, component: ComponentInfo) -> Session:
        """The session of a component, shared by all components with an equal graph."""
        # A backend that belongs to one directory does not share its sessions' buffers.
        own = str(config.root) if backend is not self._backend else ""
        key = (component.name, self.graph_digest_of(config, component), own)
        if key not in self._sessions:
            self._sessions[key] = backend.session(component, config.root)
        self._users.setdefault(key, set()).add(variant)
        return self._sessions[key]


def _image_pixels(base: EngineDir) -> dict[str, Any]:
    """The bounds of an image's pixels of a build whose images keep their shape, as arguments of a build."""
    if base.model.image_size is not None:
        return {}
    size = base.vision.settings["size"]
    return {"min_image_pixels": size["shortest_edge"], "max_image_pixels": size["longest_edge"]}


def _newlines(base: EngineDir, variant: Variant) -> str | None:
    """The newline rule of a base for one of its variants, as far as it can follow it; None: its default."""
    from trtprune.engine_dir import CONFIG_NAME
    from trtprune.runtime.images import processor_from_settings

    rule, method = base.vision.newlines, pruning.get(variant.method)
    processor = processor_from_settings(base.vision.processor, base.vision.settings, str(base.root / CONFIG_NAME))
    if method.inside or pruning.get(base.pruning.method).inside or not processor.has_newlines:
        return None
    return None if rule == "candidates" and not takes_newlines(method.needs_of(dict(variant.options))) else rule


def variant_of(config: EngineDir) -> Variant:
    """The method and options of an engine directory.

    Raises:
        EngineDirError: if this version lacks them.
    """
    try:
        return Variant.make(config.pruning.method, config.pruning.options)
    except BudgetError as error:
        raise EngineDirError(f"{config.root}: {error.marked_message}", hint="build it again") from None


@dataclass
class _Shared:
    """A backend that first looks for an equal session among the other variants."""

    variants: Variants
    variant: Variant
    config: EngineDir
    _backend: Backend = field(init=False)

    def __post_init__(self) -> None:
        self._backend = self.variants.backend(self.config)
        self.name: str = self._backend.name
        self.memory: Memory = self._backend.memory

    def session(self, component: ComponentInfo, root: Path) -> Session:
        return self.variants.session(self.variant, self.config, self._backend, component)

    def step(self, embed: Any, decoder: Any, cache: Any) -> Step:
        return self._backend.step(embed, decoder, cache)
