"""Downloads from a loopback hub.  Each runs in a process of its own: huggingface_hub reads its settings at import."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tests.kit.hub_server import COMMIT, Hub, serve
from trtprune.errors import CheckpointError

REPO = "owner/tiny-llava"
SCRIPT = """
import json, sys
from trtprune.checkpoint import resolve
from trtprune.errors import CheckpointError
arguments = json.loads(sys.argv[1])
lines = []
try:
    found = resolve(**arguments, progress=lines.append, aliases={"tiny": "owner/tiny-llava"})
    out = {
        "id": found.id, "revision": found.revision, "path": str(found.path), "files": found.files,
        "real": str(found.real_path("model.safetensors")), "lines": lines, "digest": found.digest(),
    }
except CheckpointError as error:
    out = {"error": error.flag_message, "hint": error.flag_hint, "python": error.message}
print(json.dumps(out))
"""


@pytest.fixture
def hub() -> Hub:
    rng = np.random.default_rng(0)
    weights = save({"w": rng.standard_normal((600, 1000)).astype(np.float32)})
    files = {
        "config.json": b'{"model_type": "llava"}',
        "model.safetensors": weights,
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "pytorch_model.bin": b"never fetched",
        "training.pt": b"never fetched",
        "onnx/model.safetensors": b"never fetched",
        "consolidated.safetensors": b"never fetched",
        "README.md": b"# never fetched",
    }
    return Hub(REPO, files)


def fetch(hub: Hub, home: Path, model: str = REPO, env: dict[str, str] | None = None, **arguments: Any) -> dict:
    drop = ("proxy", "hf_", "transformers_offline", "hugging")
    clean = {key: value for key, value in os.environ.items() if not any(part in key.lower() for part in drop)}
    clean |= {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "NO_PROXY": "*", **(env or {})}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps({"model": model, **arguments})],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=clean,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_download_then_cache_without_network(hub: Hub, tmp_path: Path) -> None:
    with serve(hub):
        found = fetch(hub, tmp_path)
        assert (found["id"], found["revision"], found["files"]) == (REPO, COMMIT, ["model.safetensors"])
        assert found["path"].startswith(str(tmp_path))
        assert Path(found["real"]).read_bytes() == hub.files["model.safetensors"]
        assert not Path(found["real"]).is_symlink()
        got = sorted(path.name for path in Path(found["path"]).rglob("*"))
        assert got == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
        assert found["lines"][0] == f"{REPO}: looking it up on the hub"
        # 2,400,072 bytes: what came, said once; the small files are not worth a line.
        assert found["lines"][1].startswith(f"{REPO}: 2.4 MB in ")
        assert len(found["lines"]) == 2
        assert len(fetch(hub, tmp_path)["lines"]) == 1, "what is in the cache was not downloaded"
        asked = len(hub.requests)
        for offline in ({"offline": True}, {"env": {"HF_HUB_OFFLINE": "1"}}):
            assert fetch(hub, tmp_path, **offline)["digest"] == found["digest"]
        assert len(hub.requests) == asked, "offline mode asked the hub"
    # The server is gone: the cache answers without being told to be offline; so does an alias.
    assert fetch(hub, tmp_path, "tiny")["path"] == found["path"]


def test_a_cut_connection_is_resumed_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    # huggingface_hub writes in blocks of 10 MB: what is less than one block is asked for again.
    hub.files["model.safetensors"] = save({"w": np.arange(6_000_000, dtype=np.float32)})
    hub.cut["model.safetensors"] = 15_000_000
    with serve(hub):
        found = fetch(hub, tmp_path)
    ranges = hub.gets("model.safetensors")
    assert len(ranges) == 2
    assert ranges[0] is None
    start = int(ranges[1].removeprefix("bytes=").partition("-")[0])
    assert 10_000_000 <= start <= 15_000_000
    assert Path(found["real"]).read_bytes() == hub.files["model.safetensors"]


def test_revision_in_the_name_and_as_argument(hub: Hub, tmp_path: Path) -> None:
    with serve(hub):
        assert fetch(hub, tmp_path, f"{REPO}@main")["revision"] == COMMIT
        assert fetch(hub, tmp_path, revision=COMMIT)["revision"] == COMMIT
        wrong = fetch(hub, tmp_path, f"{REPO}@v9")
    assert wrong["error"] == f"--model {REPO}@v9: no such revision on the hub"
    assert "--revision" in wrong["hint"]


def test_token_and_cache_dir_are_honoured(hub: Hub, tmp_path: Path) -> None:
    with serve(hub):
        found = fetch(hub, tmp_path / "home", cache_dir=str(tmp_path / "other"), env={"HF_TOKEN": "hf_secret"})
    assert found["path"].startswith(str(tmp_path / "other"))
    assert {request[3] for request in hub.requests if REPO in request[1]} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("fail", "message", "hint"),
    [
        ((404, "RepoNotFound"), "not found", "spelling"),
        ((401, "RepoNotFound"), "or private", "hf auth login"),
        ((401, ""), "refused access", "hf auth login"),
        ((403, "GatedRepo"), "restricted by its owner", "ask for access"),
        ((401, "GatedRepo"), "restricted by its owner", "ask for access"),
        ((403, ""), "403", "token"),
        ((500, ""), "HTTP 500", "try again"),
    ],
)
def test_refusals_of_the_hub(hub: Hub, tmp_path: Path, fail: tuple[int, str], message: str, hint: str) -> None:
    hub.fail = fail
    with serve(hub):
        answer = fetch(hub, tmp_path)
    assert answer["error"].startswith(f"--model {REPO}: ")
    assert message in answer["error"]
    assert hint in answer["hint"]
    assert "\n" not in answer["error"] + answer["hint"]
    assert answer["python"].startswith(f"model={REPO!r}: ")


def test_no_network_and_not_cached(hub: Hub, tmp_path: Path) -> None:
    with serve(hub):
        pass
    answer = fetch(hub, tmp_path)
    assert answer["error"] == f"--model {REPO}: cannot reach {hub.url}, and it is not in the cache"
    answer = fetch(hub, tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert "offline mode is on and not in the cache" in answer["error"]
    assert "HF_HUB_OFFLINE" in answer["hint"]


def test_a_repository_with_only_pickles(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    with serve(hub):
        answer = fetch(hub, tmp_path)
    assert "model.safetensors" in answer["error"]
    assert not hub.gets("pytorch_model.bin")


def test_a_disk_that_is_too_small_is_seen_before_the_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil
    from types import SimpleNamespace

    from trtprune.files.hub import Repository

    sizes = {"config.json": 900, "model-1.safetensors": 5_000_000_000, "model-2.safetensors": 4_000_000_000}
    repository = Repository.open(REPO, cache=tmp_path, offline=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9_000_000_000))
    assert sum(repository.missing(sizes, COMMIT, ["*.safetensors"]).values()) == 9_000_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8_999_999_999))
    with pytest.raises(CheckpointError, match=r"its weights take 9.0 GB more, .* has 9.0 GB left") as caught:
        repository.missing(sizes, COMMIT, ["*.safetensors"])
    assert "HF_HOME" in str(caught.value.hint)
    blobs = tmp_path / "models--owner--tiny-llava" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"x")  # of a transfer that was cut: it is not fetched again
    repository.missing(sizes, COMMIT, ["*.safetensors"])
    # One of them is in the cache already.
    blob = tmp_path / "models--owner--tiny-llava" / "snapshots" / COMMIT / "model-2.safetensors"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x")
    assert repository.missing(sizes, COMMIT, ["*.safetensors"]) == {"model-1.safetensors": 5_000_000_000}


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    from trtprune.checkpoint.hub import download

    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(CheckpointError, match="the disk is full") as caught:
        download(REPO, cache_dir=tmp_path)
    assert "HF_HOME" in str(caught.value.hint)


def test_an_unforeseen_failure_is_still_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from trtprune.checkpoint.hub import download

    def broken(*_: Any, **__: Any) -> str:
        raise ValueError("first\nsecond")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(CheckpointError, match="ValueError: first second") as caught:
        download(REPO, offline=True)
    assert "\n" not in str(caught.value)
