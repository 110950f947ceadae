"""``trtprune chat``: a conversation about images in the terminal, or with one question per line from a pipe."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtprune.cli.console import echo, log_options, logger, show_error
from trtprune.cli.flags import Command, option
from trtprune.cli.options import DIRECTORY, Loading
from trtprune.cli.run import QUESTION, answer_options
from trtprune.errors import InputError, TrtpruneError

if TYPE_CHECKING:
    from trtprune.runtime import Vlm
    from trtprune.runtime.conversation import Conversation

__all__ = ["Talk", "chat"]

MAX_LINE = 1 << 20
COMMANDS = {
    "/image FILE …": "start anew, about this picture or these",
    "/keep N": "keep N visual tokens of each picture; without N, say how many are kept",
    "/reset": "forget what was said, and keep the pictures",
    "/help": "this list",
    "/quit": "end; so does Ctrl-D",
}


@click.command(cls=Command, short_help="Talk about pictures in the terminal.")
@DIRECTORY
@option(
    "--image",
    "images",
    multiple=True,
    metavar="PICTURE",
    group=QUESTION,
    help="A picture: file or https:// address; repeat it for several.",
)
@answer_options
@log_options
def chat(directory: Path, images: tuple[str, ...], settings: dict[str, Any], repick: bool, loading: Loading) -> None:
    """Talk about pictures in the terminal.

    Answers come as they are made.  /help lists what else can be typed.  Of a pipe, each line is a question.

    \b
    trtprune chat out --image cat.jpg
    printf 'What is it?\\nWhere does it sit?\\n' | trtprune chat out --image cat.jpg
    """
    from trtprune.cli.running import check_settings, open_vlm, pictures, tell_whole_images
    from trtprune.compiler.budget import check_keep
    from trtprune.engine_dir import open_engine_dir

    if "-" in images:
        raise InputError("--image -: standard input holds the questions", hint="give the picture's path")
    check_settings(settings)
    made = open_engine_dir(directory, verify="none")
    check_keep(made, settings["keep"])

    def load(sources: Sequence[str]) -> list[Any]:
        return list(pictures(sources, loading))

    looked_at = load(images)
    vlm = open_vlm(directory, loading)
    tell_whole_images(vlm)
    talk = Talk(vlm, looked_at, {**settings, "repick": repick}, load)
    watched = sys.stdin.isatty()
    if watched:
        logger.info("%s; %s; /help lists what can be typed", vlm.config.model.id, talk.describe())
    if not talk.run(_typed if watched else _piped, patient=watched):
        sys.exit(1)


def _typed() -> str | None:
    """The next line from the terminal; None at its end."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (history, and editing of the line)
    try:
        return input("> ")
    except EOFError:
        click.echo("")
        return None


def _piped() -> str | None:
    """The next line of a pipe; None at its end.

    Raises:
        InputError: for a line that is not text, or too long.
    """
    line = sys.stdin.buffer.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise InputError(f"a line of more than {MAX_LINE} bytes", hint="one question a line")
    try:
        return line.decode("utf-8-sig").rstrip("\r\n") if line else None
    except UnicodeDecodeError:
        raise InputError("a line that is not UTF-8", hint="convert it, for example with iconv") from None


class Talk:
    """One session: the user's lines and the answers.

    Args:
        vlm: The model.
        images: Images of the first conversation; may be empty.
        settings: Arguments of :meth:`trtprune.runtime.conversation.Conversation.ask`, and ``system``.
        load: Function that loads the images of ``/image``.
    """

    def __init__(
        self,
        vlm: Vlm,
        images: Sequence[Any],
        settings: Mapping[str, Any],
        load: Callable[[Sequence[str]], list[Any]],
    ) -> None:
        self._vlm, self._load = vlm, load
        self._settings = dict(settings)
        self._system = self._settings.pop("system")
        self._images = list(images)
        self._chat: Conversation | None = None
        self.ended = False

    def describe(self) -> str:
        """Images and budget, in a few words."""
        count = len(self._images)
        pictures = "no picture yet: /image FILE" if not count else f"{count} picture{'s' * (count > 1)}"
        info, keep, ratio = self._vlm.config, self._settings["keep"], self._settings.get("keep_ratio")
        keep = keep or info.pruning.keep
        least, most = info.vision.tokens
        if count and least < most:
            from trtprune.runtime.budget import Budget

            processor, budget = self._vlm.pipeline.processor, Budget(keep, ratio)
            totals = [processor.plan(image.height, image.width, count).tokens for image in self._images]
            counts = [f"{min(budget.of(total), total)} of {total}" for total in totals]
            return f"{pictures}, {', '.join(counts)} visual tokens"
        kept = keep if ratio is None else f"{100 * ratio:g} %"
        return f"{pictures}, {kept} of {least if least == most else f'{least} to {most}'} visual tokens each"

    def run(self, read: Callable[[], str | None], *, patient: bool) -> bool:
        """Processes lines until they end; whether all of them were answered.

        Args:
            read: Returns the next line, None at the end.
            patient: Whether a person types: an interrupt then ends an answer or a line, not the session.
        """
        good = True
        while not self.ended:
            try:
                line = read()
                if line is None:
                    break
                self.take(line)
            except TrtpruneError as error:
                good = False
                show_error(error)
            except KeyboardInterrupt:
                if not patient:
                    raise
                click.echo("\ninterrupted; Ctrl-D or /quit ends", err=True)
        return good or patient

    def take(self, line: str) -> None:
        """Processes one line, a question or a command.  A question that begins with a slash needs a space in front."""
        if line.startswith("/"):
            self._command(line)
        elif line.strip():
            self._ask(line.strip())

    def _ask(self, question: str) -> None:
        from trtprune.cli.running import describe_speed

        if not self._images:
            raise InputError("there is no picture to ask about", hint="/image FILE")
        if self._chat is None:
            self._chat = self._vlm.chat(self._images, system=self._system)
            self._chat.on_text = lambda piece: echo(piece, end=False)
        result = self._chat.ask(question, **self._settings)
        echo("")
        logger.debug("%s; %s", describe_speed(result), self.describe())

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/image" and rest:
            try:
                sources = shlex.split(rest)
            except ValueError as error:
                raise InputError(f"/image: {error}", hint="quotes come in pairs") from None
            self._images, self._chat = self._load(sources), None
            logger.info("%s", self.describe())
        elif name == "/keep":
            self._keep(rest)
        elif name == "/reset":
            self._chat = None
            logger.info("forgotten; %s", self.describe())
        elif name in ("/quit", "/exit", "/bye"):
            self.ended = True
        elif name in ("/help", "/?"):
            for command, text in COMMANDS.items():
                click.echo(f"{command:<14} {text}", err=True)
        else:
            hint = f"one of {', '.join(COMMANDS)}; a space in front makes it a question"
            raise InputError(f"{line[:50]}: no such command", hint=hint)

    def _keep(self, text: str) -> None:
        if text:
            try:
                keep = int(text)
            except ValueError:
                raise InputError(f"/keep {text[:50]}: must be a whole number", hint="such as /keep 64") from None
            self._settings |= {"keep": self._vlm.check_keep(keep), "keep_ratio": None}
            if not self._settings["repick"]:
                self._chat = None  # only a new conversation selects again
        logger.info("%s", self.describe())
