"""Engine directories in the Hugging Face cache, whose files are links into blobs, and fetched from a loopback hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trtprune
from tests.kit.engine_dirs import edit
from tests.kit.engine_dirs import make as make_by_hand
from tests.kit.hub_server import COMMIT, Hub, serve
from tests.kit.runtime_kit import Kit, picture, same
from trtprune.backends.running import Running
from trtprune.engine_dir import open_engine_dir
from trtprune.errors import EngineDirError
from trtprune.variants import Variant, Variants

QUESTION = "what color is the cat?"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit.make(tmp_path_factory.mktemp("cache") / "llava")


def cached(made: Path, cache: Path) -> Path:
    """A copy of ``made`` in the layout of huggingface_hub's cache (held to the real thing below)."""
    repository = cache / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    for file in (path for path in made.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_answers_from_the_cache(kit: Kit, tmp_path: Path, provider: str) -> None:
    trtprune.build(kit.path, tmp_path / "out", provider=provider)
    snapshot = cached(tmp_path / "out", tmp_path / "hub")
    plain, linked = (trtprune.load(path, threads=1, verify="full") for path in (tmp_path / "out", snapshot))
    asked = {"keep": 5, "max_new_tokens": 4}
    assert same(plain.generate(picture(1), QUESTION, **asked), linked.generate(picture(1), QUESTION, **asked))


def test_everything_else_from_the_cache(kit: Kit, tmp_path: Path) -> None:
    trtprune.build(kit.path, tmp_path / "out")
    snapshot = cached(tmp_path / "out", tmp_path / "hub")
    shutil.rmtree(tmp_path / "out")
    with Variants(snapshot, Running(threads=1)) as variants:
        assert variants.open(Variant.make("divprune")).generate(picture(1), QUESTION, keep=3, max_new_tokens=2).text
        assert os.listdir(snapshot.parent) == [COMMIT]  # every folder there is a commit to the hub's tools
    assert sorted(os.listdir(snapshot.parent.parent)) == ["blobs", "snapshots"]
    made = trtprune.build(snapshot, tmp_path / "again", method="none", weights="copy")
    assert not any(path.is_symlink() for path in made.root.rglob("*"))
    from trtprune.compare import compare

    assert compare(snapshot, against=str(snapshot), components=["embed"]).passed


def test_other_links_are_refused(tmp_path: Path) -> None:
    make_by_hand(tmp_path / "out")
    snapshot = cached(tmp_path / "out", tmp_path / "hub")
    open_engine_dir(snapshot, verify="full")
    (tmp_path / "tokenizer.json").write_text('{"a": "tokenizer"}')
    link = snapshot / "tokenizer.json"
    blob = link.resolve()

    def leads_to(target: Path) -> None:
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(EngineDirError, match="leaves the engine directory"):
            open_engine_dir(snapshot)

    leads_to(tmp_path / "tokenizer.json")
    other = tmp_path / "hub/models--owner--private/blobs"
    other.mkdir(parents=True)
    shutil.copy(blob, other / "0")
    leads_to(other / "0")
    blob.unlink()
    blob.symlink_to(tmp_path / "tokenizer.json")  # through a blob
    leads_to(blob)
    blobs = blob.parent
    blob.unlink()
    shutil.copy(tmp_path / "tokenizer.json", blob)
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")  # all of them
    leads_to(blob)
    # Without the cache's names it is a directory like any other.
    moved = cached(tmp_path / "out", tmp_path / "plain").parents[1].rename(tmp_path / "mine")
    with pytest.raises(EngineDirError, match="leaves the engine directory"):
        open_engine_dir(moved / "snapshots" / COMMIT)


# -- from the hub


def command(hub: Hub, home: Path, *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command of a process of its own: huggingface_hub reads its settings at import."""
    drop = ("proxy", "hf_", "transformers_offline", "hugging")
    clean = {key: value for key, value in os.environ.items() if not any(part in key.lower() for part in drop)}
    clean |= {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "NO_PROXY": "*", **settings}
    asked = [sys.executable, "-m", "trtprune", *map(str, arguments)]
    return subprocess.run(asked, env=clean, cwd=home, capture_output=True, text=True, check=False)


def test_run_from_the_hub(kit: Kit, tmp_path: Path) -> None:
    made = trtprune.build(kit.path, tmp_path / "out")
    files = {name: (tmp_path / "out" / name).read_bytes() for name in ("config.json", *made.files)}
    extra = {"README.md": b"# never fetched", "onnx/pickle.bin": b"never fetched", ".gitattributes": b""}
    picture(1).save(tmp_path / "a.png")
    asked = ("--image", "a.png", "--prompt", QUESTION, "--max-new-tokens", 3, "--json", "-q")
    with serve(Hub("owner/name", files | extra)) as hub:
        here = command(hub, tmp_path, "run", "out", *asked)
        there = command(hub, tmp_path, "run", "owner/name", *asked)
        assert here.returncode == there.returncode == 0, there.stderr
        tell = ("text", "token_ids", "kept_indices")
        assert [json.loads(here.stdout).get(key) for key in tell] == [json.loads(there.stdout).get(key) for key in tell]
        assert not [asked for asked in hub.requests if asked[1].endswith((".md", ".bin", ".gitattributes"))]
        (snapshot,) = (tmp_path / "hub/models--owner--name/snapshots").iterdir()
        assert (
            snapshot / "onnx/weights/model.safetensors"
        ).is_symlink()  # the cache is what the tests above take it for
        facts = command(hub, tmp_path, "inspect", f"owner/name@{COMMIT}", "--json", HF_HUB_OFFLINE="1")
        assert json.loads(facts.stdout)["build_digest"] == made.build_digest, facts.stderr
        # What is here wins.
        (tmp_path / "owner").mkdir()
        shutil.copytree(tmp_path / "out", tmp_path / "owner/name")
        before = len(hub.requests)
        assert command(hub, tmp_path, "run", "owner/name", *asked).returncode == 0
        assert len(hub.requests) == before


def test_what_is_not_there(tmp_path: Path) -> None:
    with serve(Hub("owner/name", {"config.json": b'{"model_type": "llava"}', "model.safetensors": b"x"})) as hub:
        for name, words in {
            "owner/name": ("holds no engine directory, but a checkpoint", "trtprune build --model owner/name -o OUT"),
            "owner/none": ("no such directory, and not found on http", "check the spelling"),
            "owner/name@v9": ("no such revision on the hub", "behind the @"),
            "nothing": ("no such engine directory", "trtprune build"),
            "./owner/name": ("no such engine directory", "trtprune build"),
        }.items():
            done = command(hub, tmp_path, "inspect", name)
            assert done.returncode == 1
            assert all(word in " ".join(done.stderr.split()) for word in words), done.stderr
            assert "Traceback" not in done.stderr
        assert not [asked for asked in hub.requests if asked[1].endswith("model.safetensors")]


def test_a_hostile_config_on_the_hub(tmp_path: Path) -> None:
    """Names that leave the directory are refused before anything else is asked for."""
    made = make_by_hand(tmp_path / "out")
    edit(tmp_path / "out", "files", value=made.files | {"../../../escaped": "sha256:" + "0" * 64})
    files = {"config.json": (tmp_path / "out/config.json").read_bytes()}
    assert dataclasses.asdict(made)["files"]
    with serve(Hub("owner/name", files)) as hub:
        done = command(hub, tmp_path, "inspect", "owner/name")
        assert done.returncode == 1
        assert "leaves the engine directory" in " ".join(done.stderr.split())
        assert not list(tmp_path.rglob("escaped"))
