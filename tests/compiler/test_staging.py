"""All or nothing: whatever interrupts a build, the target is the old one or the new one, whole."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trtprune.compiler.staging import replacing_directory
from trtprune.errors import BuildError


def write(target: Path, text: str) -> None:
    with replacing_directory(target) as staging:
        (staging / "file").write_text(text)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_appears_whole_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "one")
    assert (target / "file").read_text() == "one"
    write(target, "two")
    assert (target / "file").read_text() == "two"
    assert left_over(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_exception_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out"
    write(target, "one")
    with pytest.raises(error), replacing_directory(target) as staging:
        (staging / "file").write_text("half")
        raise error
    assert (target / "file").read_text() == "one"
    assert left_over(tmp_path) == ["out"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="disk is full"), replacing_directory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert left_over(tmp_path) == []


def hold(target: Path, ready: multiprocessing.synchronize.Event, go: multiprocessing.synchronize.Event) -> None:
    with replacing_directory(target) as staging:
        (staging / "file").write_text("first")
        ready.set()
        go.wait(30)


def test_two_builds_of_one_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    target = tmp_path / "out"
    process = context.Process(target=hold, args=(target, ready, go))
    process.start()
    assert ready.wait(30)
    with pytest.raises(BuildError, match="another build"):
        write(target, "second")
    go.set()
    process.join(30)
    assert (target / "file").read_text() == "first"
    write(target, "third")
    assert left_over(tmp_path) == ["out"]


def test_a_killed_build_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from trtprune.compiler.staging import replacing_directory\n"
        "with replacing_directory(Path(sys.argv[1])) as s:\n"
        "    (s / 'file').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists()
    assert left_over(tmp_path) != []
    write(target, "whole")
    assert left_over(tmp_path) == ["out"]


def test_a_file_where_the_parent_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BuildError, match="cannot be"):
        write(tmp_path / "file" / "out", "x")
