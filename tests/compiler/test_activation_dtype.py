"""``--activation-dtype int8``: builds against transformers with the same rounding, calibration, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch

import trtprune
from tests.kit import tiny
from tests.kit.runtime_kit import Kit, picture, record
from tests.kit.tiny import Tiny
from trtprune.compiler import calibration
from trtprune.engine_dir import open_engine_dir
from trtprune.errors import BackendError, BuildError, CheckpointError

CASES = {
    "llama": Tiny(text={"attention_bias": True}, layers=4),
    # No smoothing behind a biased MLP; 97 is odd; an lm_head of its own.
    "qwen3-biased": Tiny(
        seed=4, decoder="qwen3", hidden=96, text={"attention_bias": True, "intermediate_size": 97}, dtype="bfloat16"
    ),
    "llama-mlp-bias": Tiny(seed=5, text={"mlp_bias": True}),
}
TOKENS = 6
INT8 = {"weight_dtype": "int8", "activation_dtype": "int8"}


@pytest.fixture(scope="module", params=CASES)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("activations") / request.param, CASES[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("llama") / "llama", CASES["llama"])


def built(kit: Kit, name: str = "int8", **arguments: Any) -> Path:
    out = kit.path.parent / f"{kit.path.name}-{name}"
    trtprune.build(kit.path, out, **{"method": "none", **INT8, **arguments})
    return out


def stored(out: Path) -> dict[str, np.ndarray]:
    """All written tensors, by the end of their name that transformers' parameters share."""
    tensors: dict[str, np.ndarray] = {}
    for name in ("decoder.int8.safetensors", "smoothed.safetensors"):
        tensors |= safetensors.numpy.load_file(out / "onnx/weights" / name)
    return {name.rpartition("layers.")[2] if "layers." in name else name: value for name, value in tensors.items()}


class RoundedLinear(torch.nn.Module):
    """The oracle of one product: each row of the input over ±127 by its largest magnitude."""

    def __init__(self, integers: np.ndarray, scales: np.ndarray, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = torch.from_numpy(integers.astype(np.float64))
        self.scales, self.bias = torch.from_numpy(scales), bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = x.abs().amax(-1, keepdim=True) * np.float32(1 / 127)
        y = (torch.round(x / step).double() @ self.weight).float() * self.scales * step
        return y if self.bias is None else y + self.bias


def rounded_model(kit: Kit, out: Path) -> Any:
    """The checkpoint in transformers with the build's integers and norms, and rounded activations."""
    model, tensors = tiny.load(kit.path), stored(out)
    for i, layer in enumerate(model.model.language_model.layers):
        for path, module in list(layer.named_modules()):
            key = f"{i}.{path}.weight"
            if f"{key}_scale" in tensors:
                parent, _, name = path.rpartition(".")
                rounded = RoundedLinear(tensors[key], tensors[f"{key}_scale"], module.bias)
                setattr(layer.get_submodule(parent), name, rounded)
            elif key in tensors:
                module.weight.data = torch.from_numpy(tensors[key])
    head = next((name for name in tensors if name.endswith("lm_head.weight")), None)
    if head is not None:  # not rounded: its error goes straight to the logits
        weight = (tensors[head] * tensors[f"{head}_scale"]).T
        model.lm_head.weight.data = torch.from_numpy(np.ascontiguousarray(weight))
    return model


def logits_of(out: Path, tokens: int = TOKENS) -> tuple[list[int], np.ndarray]:
    """Greedy ids and their logits; the output projection without its kernel's own rounding of activations."""
    vlm = trtprune.load(out, threads=1)
    recorder = record(vlm)
    result = vlm.generate(picture(3), "What is on the table?", max_new_tokens=tokens, ignore_eos=True)
    return result.token_ids, np.concatenate(recorder.logits)


def test_equals_transformers_with_the_same_rounding(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding may fall to either side of a tie: a few of 10,000 features, and never a different answer."""
    out = built(kit)
    configure = trtprune.backends.onnxruntime.OrtBackend._configure

    def exact(self: Any, options: Any) -> Any:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return configure(self, options)

    monkeypatch.setattr(trtprune.backends.onnxruntime.OrtBackend, "_configure", exact)
    ids, logits = logits_of(out, 1)
    model = rounded_model(kit, out)
    with torch.no_grad():
        expected = model(**kit.inputs([picture(3)], "What is on the table?")).logits[:, -1].float().numpy()
        plain = tiny.load(kit.path)(**kit.inputs([picture(3)], "What is on the table?")).logits[:, -1].float().numpy()
    error, rounding = np.abs(logits - expected).max(), np.abs(plain - expected).max()
    assert ids == expected.argmax(-1).tolist()
    assert error < 0.1 * rounding
    assert rounding < 0.3 * plain.std()


def test_every_matrix_of_the_layers_but_not_lm_head(kit: Kit) -> None:
    nodes = onnx.load(built(kit) / "onnx/decoder.onnx", load_external_data=False).graph.node
    kinds = [node.op_type for node in nodes]
    layers = CASES[kit.path.name].layers
    assert kinds.count("MatMulInteger") == 7 * layers
    assert kinds.count("QuantizeLinear") == 4 * layers  # q, k, v share theirs, and gate and up
    assert kinds.count("DequantizeLinear") == 1


def test_smoothing_leaves_products_as_they_are(kit: Kit) -> None:
    """Stored norm times stored columns is the checkpoint's, within half a step of each weight's scale."""
    tensors = stored(built(kit))
    model = tiny.load(kit.path)
    for i, layer in enumerate(model.model.language_model.layers):
        for norm, block, names in (
            ("input_layernorm", "self_attn", ("q_proj", "k_proj", "v_proj")),
            ("post_attention_layernorm", "mlp", ("gate_proj",)),
        ):
            new, old = tensors[f"{i}.{norm}.weight"], layer.get_submodule(norm).weight.detach().float().numpy()
            assert (np.abs(new / old - 1) > 1e-3).any()
            for name in names:
                key = f"{i}.{block}.{name}.weight"
                weight = layer.get_submodule(f"{block}.{name}").weight.detach().float().numpy() * (old / new)
                error = np.abs(tensors[key].T * tensors[f"{key}_scale"][:, None] - weight)
                assert (error <= 0.501 * tensors[f"{key}_scale"][:, None]).all()


def test_segments_round_alike(llama: Kit) -> None:
    """The products of a decoder in segments are those of the whole one, and it answers."""
    out = built(llama, "fastv", method="fastv", keep=12)
    segments = sorted((out / "onnx").glob("decoder.*.onnx"))
    assert len(segments) == 2
    counts = [
        sum(node.op_type == "MatMulInteger" for node in onnx.load(path, load_external_data=False).graph.node)
        for path in segments
    ]
    assert counts == [14, 14]
    vlm = trtprune.load(out, threads=1)
    assert len(vlm.generate(picture(3), "Why?", max_new_tokens=4, ignore_eos=True).token_ids) == 4


def test_pruners_read_the_smoothed_weights(llama: Kit) -> None:
    """hawk goes by queries and keys of the decoder's first layer: norm and matrices are of one smoothing."""
    int8, plain = built(llama, "hawk", method="hawk"), llama.path.parent / "llama-hawk-plain"
    trtprune.build(llama.path, plain, method="hawk")
    kept = []
    for out in (int8, plain):
        vlm = trtprune.load(out, threads=1)
        kept.append({*vlm.select(vlm.look(picture(3), "What is on the table?"), keep=8).tolist()})
    assert len(kept[0] & kept[1]) >= 7


def test_calibration_helps_where_features_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With features of a norm 60 times as large as the others, as real models have them, and small weights behind."""
    kit = Kit.make(tmp_path / "outliers", CASES["llama"])
    weights = safetensors.numpy.load_file(kit.path / "model.safetensors")
    for name, value in weights.items():
        if "language_model" not in name or "layers." not in name or name.endswith("bias"):
            continue
        if name.endswith("layernorm.weight"):
            value[[3, 40]] *= 60
        elif name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            value[:, [3, 40]] /= 60
    safetensors.numpy.save_file(weights, kit.path / "model.safetensors", {"format": "pt"})
    plain = tmp_path / "plain"
    trtprune.build(kit.path, plain, method="none")
    _, expected = logits_of(plain, 1)
    _, smoothed = logits_of(built(kit, "smoothed"), 1)
    monkeypatch.setattr("trtprune.models.projected_tower.scaled_features", lambda text: [])
    _, bare = logits_of(built(kit, "bare"), 1)
    errors = [np.sqrt(((logits - expected) ** 2).mean()) for logits in (smoothed, bare)]
    assert errors[0] < 0.5 * errors[1]


# -- calibration --------------------------------------------------------------------------------------------------


def requests_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    picture(1).save(folder / "a.png")
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROW = {"image": "a.png", "prompt": "What is this?"}


def test_a_file_of_requests(llama: Kit, tmp_path: Path) -> None:
    """Recorded by its digest, part of the build's; other requests give other scales."""
    file = requests_file(tmp_path, [ROW | {"prompt": "Why? " * n} for n in range(1, 6)])
    own, other = open_engine_dir(built(llama)), open_engine_dir(built(llama, "file", calibration=file))
    assert own.built_with["calibration"] == "built-in"
    assert other.built_with["calibration"] == calibration.calibration_digest(file)
    assert own.lowering["activations"] == other.lowering["activations"] == "int8"
    assert own.build_digest != other.build_digest
    name = "onnx/weights/smoothed.safetensors"
    assert own.files[name] != other.files[name]
    assert not [path for path in other.root.iterdir() if path.name.startswith("calibration")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW] * 3, "3 requests with a picture, and 4 are the fewest"),
        ([ROW, {"prompt": "no picture"}, *[ROW] * 3], r"requests\.jsonl:2: "),
        ([ROW, {"image": "b.png", "prompt": "?"}, *[ROW] * 3], r"requests\.jsonl:2: .*b\.png"),
        ([], "0 requests with a picture"),
    ],
)
def test_bad_requests(llama: Kit, tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    file = requests_file(tmp_path, rows)
    with pytest.raises(BuildError, match=f"calibration.*{message}"):
        built(llama, "bad", calibration=file)
    assert not (llama.path.parent / "llama-bad").exists()


def test_no_such_file(llama: Kit, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"calibration.*none\.jsonl.*No such file"):
        built(llama, "bad", calibration=tmp_path / "none.jsonl")


def test_features_that_are_no_numbers(tmp_path: Path) -> None:
    kit = Kit.make(tmp_path / "bad", CASES["llama"])
    weights = safetensors.numpy.load_file(kit.path / "model.safetensors")
    name = next(name for name in weights if "language_model" in name and "layers.1.input_layernorm" in name)
    weights[name][7] = np.inf
    safetensors.numpy.save_file(weights, kit.path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"calibration: features behind .*layers\.1\.input_layernorm"):
        built(kit)


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"provider": "openvino"}, "not for openvino", "weight_dtype='int8' alone.*in blocks"),
        ({"provider": "cuda"}, "not for cuda", "weight_dtype='int8' alone"),
        ({"backend": "tensorrt-rtx", "export_only": True}, "not for tensorrt-rtx", "weight_dtype='int8' alone"),
        ({"dtype": "float16"}, "do not fit into float16", "dtype='float32'"),
        ({"weight_dtype": "int4"}, "int4 matrices have no such product", "weight_dtype='int8'"),
        ({"weight_dtype": None}, "no int8 matrix", "weight_dtype='int8'"),
        ({"activation_dtype": "int4"}, "unknown", "float32, int8"),
        ({"lowering": {"activations": "float"}}, "activation_dtype decides this", "float32 or int8"),
        ({"activation_dtype": "float32", "calibration": "a"}, "only for activation_dtype='int8'", "leave it out"),
    ],
)
def test_refusals(llama: Kit, arguments: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        built(llama, "bad", **arguments)
    assert re.search(hint, caught.value.hint or "")


def test_providers_and_processors_without_such_products(llama: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    out = built(llama)
    for arguments, message in (
        ({"provider": "openvino"}, "not those of provider openvino"),
        ({"provider_options": {"activations": "float32"}}, "its graphs round activations themselves"),
    ):
        with pytest.raises(BackendError, match=message):
            trtprune.load(out, **arguments)
    monkeypatch.setattr("trtprune.backends.onnxruntime.int8.exact_products", lambda: False)
    with pytest.raises(BackendError, match="no VNNI"):
        trtprune.load(out)
