"""``trtprune serve``: its flags, and a server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

import trtprune
from tests.kit.serving import message
from tests.kit.tiny_files import complete
from trtprune.cli import main


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    trtprune.build(complete(root / "model"), root / "out", keep=6, method="adafv")
    return root / "out"


def serve(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["serve", *map(str, arguments)])


def test_asks_and_ends(out: Path) -> None:
    """A free port, an answer, and the end after Ctrl-C; the key is not in its output."""
    command = [sys.executable, "-m", "trtprune", "serve", str(out), "--port", "0", "--threads", "1"]
    environment = {**os.environ, "TRTPRUNE_API_KEY": "correct horse"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line
            url = f"{found[0]}/v1/chat/completions"
            body = {"messages": [message("What is this?", 1)], "max_tokens": 3}
            assert httpx.post(url, json=body, timeout=60).status_code == 401
            answer = httpx.post(url, json=body, timeout=60, headers={"Authorization": "Bearer correct horse"})
            assert answer.json()["choices"][0]["message"]["content"]
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[1]
            assert "horse" not in line + rest
            assert "Traceback" not in rest
            assert process.returncode == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--allow-files", "/nowhere/at/all"], "--allow-files /nowhere/at/all: no such folder"),
        (["--api-key", ""], "--api-key: is empty"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
    ],
)
def test_what_is_refused(out: Path, arguments: list[str], words: str) -> None:
    result = serve(out, *arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken(out: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = serve(out, "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert "--port" in result.stderr


def test_no_directory(tmp_path: Path) -> None:
    assert serve(tmp_path / "none").exit_code == 1


def test_without_the_extra(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = serve(out)
    assert result.exit_code == 1
    assert "trtprune[serve]" in result.stderr
