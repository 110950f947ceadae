"""An ONNX component of an engine directory as a TensorRT network, with its weights in place.

TensorRT gets the weights as addresses in memory-mapped safetensors files: nothing is copied until the builder needs it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtprune.backends.tensorrt.check import check_network, lint, masked_attentions
from trtprune.backends.tensorrt.flavour import Log, MessageRecord, one_line
from trtprune.errors import BackendError, BuildError
from trtprune.tensor_names import is_past

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Network", "fix_dims", "read_onnx"]


def read_onnx(path: Path, fixed: Mapping[str, int]) -> Any:
    """The ``onnx.ModelProto`` of a file, without its weights, with symbolic dimensions of inputs and outputs fixed.

    Args:
        path: The file, which is not changed.
        fixed: Value of each dimension that must be static, e.g. ``{"capacity": 1024}`` for TensorRT's cache.

    Raises:
        BuildError: if it cannot be read.
    """
    import onnx

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own classes, OSError
        raise BuildError(f"{path}: not a readable ONNX graph: {one_line(error)}") from None
    fix_dims(proto, fixed)
    return proto


def fix_dims(proto: Any, fixed: Mapping[str, int]) -> None:
    """Gives symbolic dimensions of a model's inputs and outputs a number."""
    for value in [*proto.graph.input, *proto.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param") and dim.dim_param in fixed:
                dim.dim_value = fixed[dim.dim_param]


class Network:
    """A parsed and checked component; keeps the builder and all its data alive.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        log: Its logger.
        proto: ``onnx.ModelProto``; external data locations are relative to ``root``.
        root: The folder of the ``.onnx`` file; None without external data.
        component: Name of the component, for messages.
        without_bfloat16: Whether the GPU lacks bfloat16, even as the type of a weight that is cast: such weights are
            cast here.  Only these are copied.

    Raises:
        BackendError: if TensorRT does not start.
        BuildError: if the graph would be misread, or the parser refuses it.
    """

    def __init__(
        self,
        trt: Any,
        log: Log,
        proto: Any,
        root: Path | None,
        component: str,
        *,
        without_bfloat16: bool = False,
    ) -> None:
        lint(proto, component)
        self.trt, self.component = trt, component
        self._copies: list[np.ndarray] = []
        self.cached = any(is_past(value.name) for value in proto.graph.input)
        self._masked = masked_attentions(proto)
        self._maps: dict[str, np.ndarray] = {}
        with log.recording() as record:
            try:
                self.builder = trt.Builder(log.ilogger)
                flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
                self.network = self.builder.create_network(0 if flag is None else 1 << int(flag))
            except (TypeError, RuntimeError, AttributeError) as error:  # the factory gave a null pointer
                raise BackendError(
                    f"{trt.__name__} {trt.__version__} does not start: {record.why(one_line(error))}",
                    hint="trtprune doctor says what is missing",
                ) from None
            self.parser = trt.OnnxParser(self.network, log.ilogger)
            weights = list(self._weights(proto, root))
            if without_bfloat16:
                weights = self._cast_bfloat16(proto, weights)
            self._parse(proto, weights, record)

    def _parse(self, proto: Any, weights: Iterable[tuple[str, int, int]], record: MessageRecord) -> None:
        parsed = self.parser.load_model_proto(proto.SerializeToString(), None)
        for name, address, size in weights if parsed else ():
            if not self.parser.load_initializer(name, address, size):
                raise BuildError(f"{self.component}: TensorRT does not take weight '{name}': {record.why()}")
        parsed = parsed and self.parser.parse_model_proto()
        if not parsed or self.parser.num_errors or record.errors:
            raise BuildError(
                f"{self.component}: {self.trt.__name__} {self.trt.__version__} cannot parse it: "
                f"{self._parser_error() or record.why()}"
            )

    def _parser_error(self) -> str | None:
        if not self.parser.num_errors:
            return None
        error = self.parser.get_error(0)
        node = f"node '{error.node_name()}' ({error.node_operator()}): " if error.node_name() else ""
        return node + one_line(error.desc())

    def _weights(self, proto: Any, root: Path | None) -> Iterable[tuple[str, int, int]]:
        """Name, address and bytes of every weight that lies in a file."""
        import numpy as np
        import onnx

        for tensor in proto.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            where = {entry.key: entry.value for entry in tensor.external_data}
            location, offset, size = where["location"], int(where.get("offset", 0)), int(where["length"])
            if location not in self._maps:
                if root is None:
                    raise BuildError(f"{self.component}: weight '{tensor.name}' lies in {location}, of no directory")
                try:
                    with (root / location).open("rb") as stream:
                        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:  # an empty file cannot be mapped
                    raise BuildError(f"{root / location}: cannot be read: {one_line(error)}") from None
                self._maps[location] = np.frombuffer(mapped, np.uint8)
            whole = self._maps[location]
            if offset < 0 or size < 0 or offset + size > whole.size:
                raise BuildError(f"{location}: too short for weight '{tensor.name}'", hint="copy the checkpoint again")
            yield tensor.name, int(whole.ctypes.data) + offset, size

    def _cast_bfloat16(self, proto: Any, weights: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        """Casts bfloat16 weights to the type that the graph casts them to; the graph's own casts then do nothing."""
        import numpy as np
        import onnx

        stored = {t.name: t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.BFLOAT16}
        changed = []
        for name, address, size in weights:
            if name not in stored:
                changed.append((name, address, size))
                continue
            whole = next(w for w in self._maps.values() if 0 <= address - w.ctypes.data < w.size)
            start = address - whole.ctypes.data
            bits = np.frombuffer(whole, np.uint16, size // 2, start) if size else np.empty(0, np.uint16)
            kind = _cast_to(proto, name)
            copy = np.empty(len(bits), np.float16 if kind == onnx.TensorProto.FLOAT16 else np.float32)
            with np.errstate(over="ignore"):  # to infinity, as the graph's cast would
                for i in range(0, len(bits), 1 << 22):
                    copy[i : i + (1 << 22)] = (bits[i : i + (1 << 22)].astype(np.uint32) << 16).view(np.float32)
            stored[name].data_type = kind
            for entry in stored[name].external_data:
                if entry.key == "length":
                    entry.value = str(copy.nbytes)
            self._copies.append(copy)
            changed.append((name, copy.ctypes.data, copy.nbytes))
        return changed

    def check(self, *, attention: int, cache_updates: int) -> None:
        """The check after parsing, see :func:`trtprune.backends.tensorrt.check.check_network`."""
        check_network(
            self.trt,
            self.network,
            self.component,
            attention=attention,
            cache_updates=cache_updates,
            cached=self.cached,
            cast_float32=self.trt.__name__ == "tensorrt_rtx",
            masked=self._masked,
        )

    def layer_types(self) -> list[Any]:
        """The type of every layer."""
        return [self.network.get_layer(i).type for i in range(self.network.num_layers)]

    def input_names(self) -> list[str]:
        """The names of the inputs."""
        return [self.network.get_input(i).name for i in range(self.network.num_inputs)]

    def shape_inputs(self) -> set[str]:
        """Inputs whose content decides shapes, so that a profile bounds their values."""
        inputs = map(self.network.get_input, range(self.network.num_inputs))
        return {tensor.name for tensor in inputs if tensor.is_shape_tensor}


def _cast_to(proto: Any, name: str) -> int:
    """The ONNX type that an initializer is cast to: float16, or else float32, which is exact."""
    import onnx

    found, names = set(), {name}
    for node in proto.graph.node:  # in topological order
        if not names.intersection(node.input):
            continue
        if node.op_type == "Cast":
            found.add(node.attribute[0].i)
        elif node.op_type in ("Gather", "Transpose", "Reshape", "Identity"):
            names.update(node.output)
        else:
            found.add(onnx.TensorProto.BFLOAT16)
    return int(onnx.TensorProto.FLOAT16 if found == {onnx.TensorProto.FLOAT16} else onnx.TensorProto.FLOAT)
