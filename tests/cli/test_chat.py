"""``trtprune chat``: a conversation, typed or piped, is that of :meth:`Vlm.chat`."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import trtprune
from tests.kit import compare_kit as kit
from tests.kit.runtime_kit import picture
from trtprune.cli import chat as chat_command
from trtprune.cli import main
from trtprune.runtime import Vlm

pty = pytest.importorskip("pty")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    kit.build(kit.checkpoint(place / "model"), place / "out")
    for name in ("a", "b c"):
        picture(len(name)).save(place / f"{name}.png")
    return place


@pytest.fixture(scope="module")
def vlm(place: Path) -> Vlm:
    return trtprune.load(place / "out", threads=1)


def chat(place: Path, lines: Sequence[str], *more: Any) -> tuple[int, str, str]:
    arguments = ["chat", place / "out", "--max-new-tokens", 4, *more]
    result = CliRunner().invoke(main, list(map(str, arguments)), input="".join(f"{line}\n" for line in lines))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_question_a_line(place: Path, vlm: Vlm) -> None:
    code, stdout, stderr = chat(
        place, ["what color", "", "how many?", "  where"], "--image", place / "a.png", "--keep", 3
    )
    assert code == 0, stderr
    talk = vlm.chat(str(place / "a.png"))
    expected = [talk.ask(q, max_new_tokens=4, keep=3).text for q in ("what color", "how many?", "where")]
    assert stdout == "".join(f"{text}\n" for text in expected)


def test_commands(place: Path, vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "/image a.png",
        "what color",
        "/keep 2",
        "how many?",
        "/reset",
        "how many?",
        "/image 'b c.png' a.png",
        "what color",
        " /usr is what?",
        "/keep",
        "/help",
        "/quit",
        "not asked",
    ]
    monkeypatch.chdir(place)
    code, stdout, stderr = chat(place, lines)
    assert code == 0, stderr
    talk = vlm.chat("a.png")
    texts = [talk.ask("what color", max_new_tokens=4).text, talk.ask("how many?", max_new_tokens=4, keep=2).text]
    texts.append(vlm.chat("a.png").ask("how many?", max_new_tokens=4, keep=2).text)
    talk = vlm.chat(["b c.png", "a.png"])
    texts += [talk.ask(q, max_new_tokens=4, keep=2).text for q in ("what color", "/usr is what?")]
    assert stdout == "".join(f"{text}\n" for text in texts)
    assert f"2 pictures, 2 of {vlm.config.model.visual_tokens} visual tokens each" in stderr
    assert "/reset" in stderr


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/image gone.png", "gone.png: no such file"),
        ("/image 'a", "/image: No closing quotation"),
        ("/image", "no such command"),
        ("/keep many", "/keep many: must be a whole number"),
        ("/keep 1000", "--keep 1000"),
        ("/fly", "/fly: no such command"),
        ("<image>", "<image>"),
        ("what " * 3000, "tokens"),
        ("\ud800", "not UTF-8"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_talk_goes_on(place: Path, vlm: Vlm, line: str, reason: str) -> None:
    data = f"what color\n{line}\nhow many?\n".encode("utf-8", "surrogatepass")
    arguments = ["chat", str(place / "out"), "--max-new-tokens", "4", "--image", str(place / "a.png")]
    result = CliRunner().invoke(main, arguments, input=data)
    assert result.exit_code == 1
    talk = vlm.chat(str(place / "a.png"))
    assert result.stdout == "".join(talk.ask(q, max_new_tokens=4).text + "\n" for q in ("what color", "how many?"))
    assert reason in result.stderr.partition("error: ")[2]


def test_no_picture(place: Path) -> None:
    code, stdout, stderr = chat(place, ["what color"])
    assert (code, stdout) == (1, "")
    assert "no picture to ask about" in stderr


def test_streamed_pieces_are_the_answer(vlm: Vlm, place: Path) -> None:
    pieces: list[str] = []
    talk = vlm.chat(str(place / "a.png"))
    for repick in (True, False, False):
        talk.on_text = pieces.append
        streamed = talk.ask("what color", max_new_tokens=9, repick=repick)
        assert "".join(pieces) == streamed.text
        assert len(pieces) > 1
        pieces.clear()
    quiet = vlm.chat(str(place / "a.png"))
    assert [quiet.ask("what color", max_new_tokens=9, repick=r).text for r in (True, False, False)] == [
        turn.text for turn in talk.turns if turn.role == "assistant"
    ]


class Terminal:
    """A child at a terminal of its own."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        self._controller, other = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "trtprune", *map(str, arguments)],
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(other)
        self.shown = ""

    def wait_for(self, ready: Callable[[str], bool]) -> None:
        end = time.monotonic() + 60
        while not ready(self.shown):
            assert time.monotonic() < end, self.shown
            if select.select([self._controller], [], [], 0.2)[0]:
                try:
                    self.shown += ANSI.sub("", os.read(self._controller, 1 << 16).decode("utf-8", "replace"))
                except OSError:
                    break

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def close(self) -> int:
        code = self.child.wait(60)
        os.close(self._controller)
        return code


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_typed(place: Path, vlm: Vlm) -> None:
    terminal = Terminal(["chat", place / "out", "--image", place / "a.png", "--max-new-tokens", 4])
    terminal.wait_for(lambda shown: shown.endswith("> "))
    assert "/help lists what can be typed" in terminal.shown
    expected = vlm.chat(str(place / "a.png")).ask("what color", max_new_tokens=4).text
    terminal.type("what color\n")
    terminal.wait_for(lambda shown: shown.count("\n> ") >= 2 or shown.count("> ") >= 2)
    assert f"what color\r\n{expected}".rstrip() in terminal.shown.rstrip("> \r\n")
    # Ctrl-C at the prompt.  Python's input() shows the prompt a moment before it looks for signals: one that comes in
    # between is seen with the next key only, and nobody types that fast.
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.wait_for(lambda shown: "Ctrl-D or /quit ends" in shown and shown.endswith("> "))
    terminal.type("/fly\n")
    terminal.wait_for(lambda shown: "no such command" in shown and shown.endswith("> "))
    terminal.type("\x04")
    assert terminal.close() == 0


def test_an_interrupt_ends_the_answer_only(place: Path, vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def interrupted(piece: str, *, end: bool = True) -> None:
        said.append(piece)
        if len(said) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(chat_command, "echo", interrupted)
    settings = {"system": None, "keep": None, "repick": False, "max_new_tokens": 4}
    lines = iter(["what color", "how many?"])
    talk = chat_command.Talk(vlm, [str(place / "a.png")], settings, list)
    assert talk.run(lambda: next(lines, None), patient=True)
    # The interrupted question is no part of the conversation.
    assert "".join(said[2:]) == vlm.chat(str(place / "a.png")).ask("how many?", max_new_tokens=4).text
    said.clear()
    lines = iter(["what color"])
    with pytest.raises(KeyboardInterrupt):
        talk.run(lambda: next(lines, None), patient=False)
