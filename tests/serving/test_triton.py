"""An engine directory as a Triton model: the repository, and the real server with its own clients."""

from __future__ import annotations

import base64
import io
import json
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from click.testing import CliRunner

import trtprune
from tests.kit.runtime_kit import picture
from tests.kit.tiny_files import complete
from tests.kit.triton_server import Triton
from trtprune.cli import main
from trtprune.runtime import Vlm


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("triton")
    trtprune.build(complete(root / "model"), root / "out", keep=6, method="adafv")
    return root / "out"


def write(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["triton", *map(str, arguments)])


def test_the_repository(out: Path, tmp_path: Path) -> None:
    """A copy that runs by itself: no file shared with the directory, no path of this machine."""
    result = write(out, "-o", tmp_path / "models", "--name", "tiny", "--max-batch-size", 3)
    assert result.exit_code == 0, result.stderr
    model = tmp_path / "models/tiny"
    assert result.stdout.strip() == str(model)
    assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt"]
    text = (model / "config.pbtxt").read_text()
    assert 'parameters { key: "max_batch_size" value: { string_value: "3" } }' in text
    assert str(tmp_path) not in text
    copied = trtprune.load(model / "1/engine", threads=1)
    assert copied.generate(picture(1), "Why?", max_new_tokens=3).token_ids
    for path in (model / "1/engine").rglob("*"):
        assert path.is_dir() or path.stat().st_nlink == 1


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a b", 'a"', "x" * 101])
def test_names(out: Path, tmp_path: Path, name: str) -> None:
    result = write(out, "-o", tmp_path / "models", f"--name={name}")
    assert (result.exit_code, list(tmp_path.rglob("*"))) == ((1, []) if name else (0, list(tmp_path.rglob("*"))))


def test_a_model_that_is_there(out: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/mine.txt").write_text("mine")
    result = write(out, "-o", tmp_path, "--name", "tiny")
    assert result.exit_code == 1
    assert "is there already" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert (tmp_path / "tiny/mine.txt").read_text() == "mine"


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, "PNG")
    return stream.getvalue()


def tensor(kind: Any, name: str, values: list[Any], dtype: str = "BYTES") -> Any:
    array = np.array(values, object if dtype == "BYTES" else bool)
    found = kind.InferInput(name, list(array.shape), dtype)
    found.set_data_from_numpy(array)
    return found


def inputs(question: str, images: list[bytes], *, stream: bool = False, **parameters: Any) -> list[Any]:
    return [
        tensor(grpc, "text_input", [question.encode()]),
        tensor(grpc, "image", images),
        tensor(grpc, "stream", [stream], "BOOL"),
        tensor(grpc, "sampling_parameters", [json.dumps(parameters).encode()]),
    ]


def ask(port: int, given: list[Any]) -> list[dict[str, Any]]:
    """All responses to one request; the last of them is the error, if there is one."""
    events: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.start_stream(lambda result, error: events.put((result, error)))
        client.async_stream_infer("tiny", given, enable_empty_final_response=True)
        found: list[dict[str, Any]] = []
        while True:
            result, error = events.get(timeout=120)
            if error is not None:
                return [*found, {"error": error.message()}]
            response = result.get_response()
            found.append({out.name: result.as_numpy(out.name)[0] for out in response.outputs})
            if response.parameters["triton_final_response"].bool_param:
                return found


@pytest.fixture(scope="module")
def served(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    root = tmp_path_factory.mktemp("server")
    assert write(out, "-o", root / "models", "--name", "tiny", "--threads", 1).exit_code == 0
    with Triton.install(root).serve(root / "models", root / "log") as ports:
        yield ports


@pytest.fixture(scope="module")
def vlm(out: Path) -> Vlm:
    return trtprune.load(out, threads=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_real_server(served: tuple[int, int], vlm: Vlm) -> None:
    """Over gRPC: whole answers and streams, several at once, equal to the library's; over HTTP: the generate calls."""
    asked = [(f"What is {n}?", [1 + n % 3] * (1 + n % 2), 3 + n, n % 2 == 0) for n in range(10)]

    def one(question: str, seeds: list[int], longest: int, stream: bool) -> list[dict[str, Any]]:
        images = [png(seed) for seed in seeds]
        return ask(served[1], inputs(question, images, stream=stream, max_tokens=longest, keep=5))

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda row: one(*row), asked))
    for (question, seeds, longest, stream), parts in zip(asked, answers, strict=True):
        wanted = vlm.generate([picture(seed) for seed in seeds], question, max_new_tokens=longest, keep=5)
        assert b"".join(part["text_output"] for part in parts).decode() == wanted.text
        last = parts[-1]
        assert len(parts) == 1 or stream
        assert last["finish_reason"].decode() == wanted.finish_reason
        assert last["num_output_tokens"] == len(wanted.token_ids)
        assert (last["visual_tokens"], last["kept_tokens"]) == (wanted.visual_tokens, wanted.kept_tokens)
    with http.InferenceServerClient(f"127.0.0.1:{served[0]}") as client:
        assert client.is_model_ready("tiny")
    url = "data:image/png;base64," + base64.b64encode(png(1)).decode()
    body = {"text_input": "What is this?", "image": url, "sampling_parameters": '{"max_tokens": 5}'}
    found = httpx.post(f"http://127.0.0.1:{served[0]}/v2/models/tiny/generate_stream", json=body, timeout=60)
    event = json.loads(found.text.strip().removeprefix("data: "))
    assert event["text_output"] == vlm.generate(picture(1), "What is this?", max_new_tokens=5).text


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: inputs("x", [png(1)], keep=10**6), "keep=1000000: outside"),
        (lambda: inputs("x", [png(1)], max_tokens=-1), "max_tokens"),
        (lambda: inputs("x", [b"no picture"]), "image 1"),
        (lambda: inputs("x", [b"data:image/png;base64,@@"]), "image 1"),
        (lambda: [tensor(grpc, "text_input", [b"\xff"])], "not UTF-8"),
        (lambda: [tensor(grpc, "image", [png(1)])], "text_input or messages"),
        (lambda: [tensor(grpc, "messages", [b"[{"])], "not JSON"),
        (lambda: [tensor(grpc, "text_input", [b"x"]), tensor(grpc, "sampling_parameters", [b"[]"])], "no JSON object"),
    ],
)
def test_bad_requests(served: tuple[int, int], given: Any, words: str) -> None:
    assert words in ask(served[1], given())[-1]["error"]
    assert "error" not in ask(served[1], inputs("x", [png(1)], max_tokens=2))[-1]
