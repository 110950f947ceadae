"""What reaches the terminal: whole lines, printable ones, in the user's colours; and an error for what cannot."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from trtprune.cli import main
from trtprune.cli.console import Group, _configure, echo_json, logger
from trtprune.errors import printable
from trtprune.reports import terminal as terminal_module

pty = pytest.importorskip("pty")
TRTPRUNE = [sys.executable, "-m", "trtprune"]
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(arguments: list[str], **environment: str) -> tuple[int, str]:
    """Exit code and all that a child writes to a terminal of 100 columns."""
    controller, terminal = pty.openpty()
    # TERM and NO_COLOR of whoever runs the tests are not this test's.
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen(
        arguments,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=clean | {"TERM": "xterm-256color", "COLUMNS": "100"} | environment,
        close_fds=True,
    )
    os.close(terminal)
    parts = []
    while True:
        try:
            part = os.read(controller, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(controller)
    return child.wait(), b"".join(parts).decode("utf-8", "replace")


SPINNING = """
import logging, sys, time
from trtprune.cli.console import _configure, progress
_configure(0, None)
with progress("build") as report:
    for name in ("vision", "decoder"):
        time.sleep(0.3)
        report(name, "exported, 648 nodes")
        report.live("half way")
        time.sleep(0.3)
"""


def test_spinner_and_lines_do_not_overwrite_each_other() -> None:
    code, shown = in_terminal([sys.executable, "-c", SPINNING])
    assert code == 0
    assert "⠋ build" in ANSI.sub("", shown)  # the spinner was there
    lines = [line.strip() for line in re.split(r"[\r\n]", ANSI.sub("", shown))]
    for name in ("vision", "decoder"):
        assert f"{name:<9} exported, 648 nodes" in lines


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_no_color(environment: dict[str, str], coloured: bool) -> None:
    code, shown = in_terminal([*TRTPRUNE, "inspect", "nowhere"], **environment)
    assert code == 1
    assert "nowhere" in shown
    assert ("\x1b[" in shown) is coloured


def run(arguments: list[str], **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TRTPRUNE, *arguments], stderr=subprocess.PIPE, text=True, check=False, **more)  # type: ignore[call-overload, no-any-return]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_disk(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = run(["methods"], stdout=full, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output cannot be written: No space left on device\nhint: ")
    assert len(done.stderr.splitlines()) == 2


def test_closed_stdout() -> None:
    command = f"{sys.executable} -m trtprune methods >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output is closed\n")


def test_a_closed_stderr_is_no_file_of_ours(tmp_path: Path) -> None:
    """The first file opened would get its number, and the log's lines would land in it."""
    command = f"{sys.executable} -m trtprune methods --log-file log 2>&-"
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0
    assert "adafv" in done.stdout
    assert (tmp_path / "log").read_text() == ""


def test_a_reader_that_goes_is_no_news() -> None:
    with subprocess.Popen([*TRTPRUNE, "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


def test_an_encoding_that_is_too_small() -> None:
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = run(["methods"], stdout=subprocess.PIPE, env=latin)
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output is latin-1 and cannot show '\\u2026'\n")
    done = run(["methods", "--json"], stdout=subprocess.PIPE, env=latin)
    assert done.returncode == 0
    assert any("…" in str(method) for method in json.loads(done.stdout))


@pytest.mark.parametrize("milliseconds", [60, 90, 120, 160, 220])
def test_interrupted_while_it_starts(milliseconds: int) -> None:
    # In trtprune's own imports; what Python does before them is Python's.
    code = "import time, trtprune.cli.entry as e; print('here', flush=True); time.sleep({}); e.main()"
    script = f"import sys; sys.argv = ['trtprune', 'doctor']; {code.format(0)}"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "here\n"
        time.sleep((milliseconds - 50) / 1000)
        child.send_signal(signal.SIGINT)
        said = child.stderr.read()
    assert "Traceback" not in said
    assert child.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["run", "out", "--promt", "x"], "no such option '--promt'", "--prompt"),
        (["rum"], "no such command 'rum'", "run"),
        (["run", "out", "--method", "x"], "no such option '--method'", "--method is for trtprune build or export"),
        (["build", "-o", "x"], "missing option '-m' / '--model'", "build --help"),
        (["build", "-m", "demo", "-o", "x", "--backend", "y"], "'y' is not one of", "build --help"),
        (["run", "out", "--requests", "a", "--image", "b"], "--requests replaces --image", "run --help"),
    ],
)
def test_usage_looks_like_every_error(arguments: list[str], error: str, hint: str) -> None:
    result = CliRunner().invoke(main, arguments, prog_name="trtprune")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]
    assert lines[2].startswith("Usage: trtprune ")


def raising(error: Exception) -> click.Group:
    @click.group(cls=Group)
    def group() -> None:
        pass

    @group.command()
    def command() -> None:
        raise error

    return group


def test_an_error_of_the_system_is_one_line() -> None:
    result = CliRunner().invoke(raising(PermissionError(13, "Permission denied", "/a\x1b[2J/b")), ["command"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "error: /a\\x1b[2J/b: Permission denied"


@given(st.text())
def test_log_lines_are_single_and_printable(text: str) -> None:
    stream = CliRunner()
    with stream.isolation() as (_, err, *_rest):
        _configure(0, None)
        logger.info("%-9s %s", "name", text)
        sys.stderr.flush()
        line = err.getvalue().decode("utf-8")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_log_lines_are_bounded(tmp_path: Path) -> None:
    with CliRunner().isolation() as (_, err, *_rest):
        _configure(1, tmp_path / "log")
        logger.info("x" * 90_000_000)
        try:
            raise ValueError("\x1b[2J")
        except ValueError:
            logger.debug("behind", exc_info=True)
        line = err.getvalue().decode()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    assert len(line.splitlines()[0]) <= terminal_module.LINE_LENGTH
    assert "ValueError: \\x1b[2J" in line
    assert line.count("\x1b") == 0
    assert (tmp_path / "log").read_text().count("\x1b") == 0


@given(st.text())
def test_json_is_printable_and_the_same(text: str) -> None:
    with CliRunner().isolation() as (out, *_rest):
        echo_json({"text": text})
        line = out.getvalue().decode("utf-8")
    assert json.loads(line) == {"text": text}
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", line)


def test_answers_on_a_terminal() -> None:
    script = "from trtprune.cli.console import echo; echo('a\\x1b[2Jb\\tc\\n\\u202eé日')"
    assert in_terminal([sys.executable, "-c", script]) == (0, "a\\x1b[2Jb\tc\r\n\\u202eé日\r\n")
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    assert piped == "a\x1b[2Jb\tc\n\u202eé日\n".encode()


HOSTILE = """
import click
from trtprune.cli.console import Group

@click.group(cls=Group)
def group(): pass

@group.command()
def command():
    click.echo(click.style("red", fg="red") + "\\x1b]0;title\\x07\\x1b[2J\\x9b1Aé\\n\\x1b[1mbold")

group(["command"])
"""


def test_no_command_moves_the_cursor() -> None:
    """Texts of files, in whatever table they stand; colours pass."""
    script = HOSTILE.replace("\\\\", "\\")
    code, shown = in_terminal([sys.executable, "-c", script])
    assert (code, shown) == (0, "\x1b[31mred\x1b[0m\\x1b]0;title\\x07\\x1b[2J\\x9b1Aé\r\n\x1b[1mbold\r\n")


def test_printable() -> None:
    assert printable("a\nb\x9b", keep="\n") == "a\nb\\x9b"
    assert logging.getLogger("trtprune") is logger
