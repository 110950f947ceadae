"""The process that templates and tokenizers run in: limits, restarts, forks, threads, interrupts, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fuzz.fuzz_tokenizers import small_tokenizer
from tests.kit.chat_templates import LLAVA
from trtprune.errors import BackendError, EngineDirError, InputError, TrtpruneError
from trtprune.runtime.prompt import PromptEncoder
from trtprune.text import process
from trtprune.text.template import Turn

IMAGE = 3
ROOT = Path(__file__).resolve().parents[2]
ASK = [Turn("user", "What is it?", 1)]
SPINS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HOARDS = "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process with little memory: to fill it takes less time."""
    monkeypatch.setattr(process, "MEMORY", 200_000_000)
    process.stop()
    yield
    process.stop()


def encoder(template: str = LLAVA, **changes: object) -> PromptEncoder:
    files = {
        "tokenizer.json": json.dumps(small_tokenizer() | changes),
        "tokenizer_config.json": json.dumps({"bos_token": "<s>", "eos_token": "</s>"}),
        "chat_template.jinja": template,
    }
    return PromptEncoder(files, "<image>", IMAGE)


def large_model() -> dict[str, Any]:
    """Takes about a fourth of what the small process may take."""
    model = small_tokenizer()["model"]
    return model | {"vocab": model["vocab"] | {f"token{i}" * 500: 1000 + i for i in range(4000)}}


def many_ids(pieces: int, ids: int) -> dict[str, Any]:
    """A post-processor that puts ``pieces`` × ``ids`` ids before a text."""
    before = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * pieces
    token = {"id": "<s>", "ids": [0] * ids, "tokens": ["<s>"] * ids}
    single = [*before, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {"<s>": token}}


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "trtprune.text.service" in " ".join(child.cmdline())]


def test_one_process_for_all_models() -> None:
    made = [encoder() for _ in range(5)]
    texts = {tuple(one.encode(ASK).ids.tolist()) for one in made}
    assert len(texts) == 1
    assert len(children()) == 1


@pytest.mark.parametrize(("template", "said"), [(SPINS, "more than 3 s"), (HOARDS, "more than 0.2 GB")])
def test_too_much(small: None, template: str, said: str) -> None:
    """Ends the process, and nothing but the template's own model notices."""
    before = encoder()
    ids = before.encode(ASK).ids.tolist()
    (old,) = children()
    with pytest.raises(EngineDirError, match=f"the chat template takes {said}") as caught:
        encoder(template)
    assert caught.value.hint
    assert before.encode(ASK).ids.tolist() == ids
    (new,) = children()
    assert new.pid != old.pid


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}}, "GB of memory"),
        ({"decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}}, "GB of memory"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "chunk size"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}, "tokenizer.json"),
        # No letter of the questions that a build asks: it bursts at an answer.
        ({"decoder": {"type": "Strip", "content": "z", "start": 1, "stop": 2}}, "tokenizer.json"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "tokenizer.json"),
        ({"model": small_tokenizer()["model"] | {"continuing_subword_prefix": "aaa", "merges": ["a b"]}}, "tokenizer"),
        ({"post_processor": many_ids(1, 1) | {"special_tokens": {}}}, "tokenizer"),
        ({"post_processor": many_ids(2000, 10**5)}, "GB of memory"),
    ],
)  # fmt: skip
def test_tokenizers_that_burst(
    small: None, changes: dict[str, object], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Growth, aborts and panics are errors, without a word of the Rust library's own on the terminal."""
    with pytest.raises(TrtpruneError, match=said) as caught:
        made = encoder(**changes)
        made.rehearse()
        made.decode(range(260))
    assert caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_memory_of_others_is_not_held_against_a_model(small: None) -> None:
    """Models that fit alone, but not together."""
    model = large_model()
    made = [encoder(model=model) for _ in range(6)]
    assert len({tuple(one.encode(ASK).ids.tolist()) for one in made}) == 1


def test_closed_models_are_forgotten(small: None) -> None:
    model = large_model()
    encoder(model=model)
    (first,) = children()
    for _ in range(6):
        encoder(model=model)
    (last,) = children()
    assert first.pid == last.pid


def test_threads() -> None:
    made = [encoder(), encoder(LLAVA.replace("ASSISTANT", "AI"))]

    def ask(i: int) -> tuple[int, int]:
        return i % 2, len(made[i % 2].encode([Turn("user", "x" * i, 1)]).ids) - i

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(ask, range(200)))
    assert len(found) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork() -> None:
    """A forked program has a process of its own, and leaves its parent's alone."""
    made = encoder()
    ids = made.encode(ASK).ids.tolist()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if all(made.encode(ASK).ids.tolist() == ids for _ in range(20)) else 2
            process.stop()
        finally:
            os._exit(code)
    for _ in range(20):
        assert made.encode(ASK).ids.tolist() == ids
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


PROGRAM = (
    "import sys, psutil\nfrom tests.text.test_process import encoder, children, ASK\nmade = encoder()\n"
    "made.encode(ASK)\nprint(children()[0].pid, flush=True)\nsys.stdin.read(1)\n"
)


@pytest.mark.parametrize("how", ["end", "kill"])
def test_it_ends_with_the_program(how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as program:
        assert program.stdout is not None
        service = psutil.Process(int(program.stdout.readline()))
        assert service.is_running()
        if how == "kill":
            program.kill()
        program.communicate("x")
    assert psutil.wait_procs([service], timeout=10)[1] == []


def test_interrupt() -> None:
    """An interrupt while a question is on its way does not make the next answer another question's."""
    made = encoder()
    slow = [Turn("user", "a b " * 100_000, 1)]
    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    for _ in range(3):
        timer = threading.Timer(0.02, os.kill, [os.getpid(), signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            made.encode(slow)
            time.sleep(5)
        assert len(made.encode(ASK).ids) < 40


def test_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with_process = encoder()
    wanted, described = with_process.encode(ASK).ids.tolist(), with_process.describe()
    process.stop()
    monkeypatch.setenv(process.OFF, "off")
    made = encoder()
    assert made.encode(ASK).ids.tolist() == wanted
    assert made.describe() == described
    assert not children()
    with pytest.raises(InputError, match="for 2 image"):
        made.encode([Turn("user", "<image>", 2)], raw=True)
    with pytest.raises(TrtpruneError, match="chunk size") as caught:
        encoder(pre_tokenizer={"type": "FixedLength", "length": 0}).rehearse()
    assert caught.value.hint


@pytest.mark.parametrize("executable", ["/nowhere/python", "/bin/false", None])
def test_no_python_to_start(monkeypatch: pytest.MonkeyPatch, executable: str | None) -> None:
    process.stop()
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(BackendError) as caught:
        encoder()
    assert f"{process.OFF}=off" in (caught.value.hint or "")


def test_what_the_process_imports() -> None:
    """It starts quickly because it needs little."""
    code = "import sys, trtprune.text.service; print([m for m in ('numpy', 'PIL', 'onnx') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
