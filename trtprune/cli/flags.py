"""Additions to click: aliases of flags that help does not list, flags with an optional value, options in groups.

No command, no heavy import.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

__all__ = ["LAST", "LOGGING", "MORE", "OUTPUT", "Command", "Flag", "Gathered", "Options", "grouped", "option"]

MORE, OUTPUT, LOGGING = "Options", "Output", "Logging"
LAST = (OUTPUT, LOGGING)


class Flag(click.Option):
    """A click option.

    Args:
        aliases: Further accepted spellings, not listed in help.
        group: Its heading in help.
        bare: The flag's value if none is given, which makes the value optional. An engine directory is never taken for
            the value, so that ``--json OUT`` is the flag and the argument.
    """

    def __init__(
        self,
        declarations: Sequence[str] | None = None,
        *,
        aliases: Sequence[str] = (),
        group: str = MORE,
        bare: Any = None,
        **settings: Any,
    ) -> None:
        self.aliases, self.group, self.bare = tuple(aliases), group, bare
        if bare is not None:
            settings |= {"is_flag": False, "flag_value": bare}
        super().__init__(declarations, **settings)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """As in click, with the aliases."""
        listed, self.opts = self.opts, [*self.opts, *self.aliases]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = listed

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """As in click, with an optional value in brackets."""
        record = super().get_help_record(ctx)
        if record is None or self.bare is None:
            return record
        metavar = self.metavar or "FILE"
        return record[0].replace(f" {metavar}", f" [{metavar}]"), record[1]


Options = tuple[Callable[[Any], Any], ...]
"""Options of a command, or decorators that bring several, in the order of help."""

option: Callable[..., Callable[[Any], Any]] = partial(click.option, cls=Flag)
"""``click.option`` with :class:`Flag`."""


@dataclass(frozen=True)
class Gathered:
    """Options that reach a command as one object; a decorator, as an option is.

    Attributes:
        name: The command's argument.
        make: Makes the object from the options' values by name, such as a dataclass.
        options: In the order of help; some of them may be gathered among themselves.
        apart: Names of options that reach the command as they are, though they stand among these.
    """

    name: str
    make: Callable[..., Any]
    options: Options
    apart: tuple[str, ...] = ()

    def __call__(self, command: Any) -> Any:
        """The command, with these options in place of its argument :attr:`name`."""
        names: list[str] = []

        @functools.wraps(command)
        def gathering(*arguments: Any, **values: Any) -> Any:
            own = {name: values.pop(name) for name in names if name not in self.apart}
            return command(*arguments, **values, **{self.name: self.make(**own)})

        decorated: Any = gathering
        for each in reversed(self.options):
            decorated = each(decorated)
            names.append(each.name if isinstance(each, Gathered) else decorated.__click_params__[-1].name)
        return decorated


class Command(click.Command):
    """A click command whose help lists its options in groups."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As in click; see ``bare`` of :class:`Flag`."""
        optional = {
            name
            for parameter in self.params
            if isinstance(parameter, Flag) and parameter.bare is not None
            for name in (*parameter.opts, *parameter.aliases)
        }
        end = args.index("--") if "--" in args else len(args)
        pairs = list(enumerate(itertools.pairwise(args[:end])))
        alone = [at for at, (word, after) in pairs if word in optional and (Path(after) / "config.json").is_file()]
        # A flag at the end has no value.
        kept = [word for place, word in enumerate(args[:end]) if place not in alone]
        return super().parse_args(ctx, [*kept, *(args[place] for place in alone), *args[end:]])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, one section per group in the order of the groups; output and logging last."""
        for group, options in grouped(self, ctx).items():
            with formatter.section("Logging and help" if group == LOGGING else group):
                formatter.write_dl([record for each in options if (record := each.get_help_record(ctx)) is not None])


def grouped(command: click.Command, ctx: click.Context) -> dict[str, list[click.Option]]:
    """Heading → its options in help."""
    groups: dict[str, list[click.Option]] = {}
    for parameter in command.get_params(ctx):
        # Newer releases of click also have records of arguments; the usage line names those.
        if isinstance(parameter, click.Option) and not parameter.hidden:
            group = LOGGING if "--help" in parameter.opts else getattr(parameter, "group", MORE)
            groups.setdefault(group, []).append(parameter)
    return dict(sorted(groups.items(), key=lambda item: LAST.index(item[0]) if item[0] in LAST else -1))
