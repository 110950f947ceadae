"""Writes docs/cli.md out of the commands themselves.

    python docs/write_cli.py [--check]

With ``--check`` nothing is written; exit code 1 says that the page is not what the commands would give.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import click

from trtprune.cli import main as commands
from trtprune.cli.flags import LAST, Flag, grouped

PAGE = Path(__file__).parent / "cli.md"
ORDER = (
    "build", "export", "run", "chat", "serve", "triton", "show", "inspect", "compare", "bench", "eval", "frontier",
    "methods", "models", "doctor",
)  # fmt: skip
HEAD = """# Command line

<!-- written by docs/write_cli.py; change the commands, not this page -->

`trtprune COMMAND --help` says the same. Results go to stdout, everything else to stderr; exit codes and environment
variables are in [environment.md](environment.md). `-q` leaves warnings and errors, `-v` adds lines, `--log-file FILE`
keeps all of them with times and, of an error, the traceback.

Flags mean the same everywhere:

| flag | meaning | also taken |
|---|---|---|
| `--keep N` | the budget of one answer or build | |
| `--keep 192,64` | several budgets (`show`, `bench`, `eval`) | `--keep 192 --keep 64` |
| `--method NAME` | the method of a build | `--methods` |
| `--methods A,B:OPTION=VALUE` | several methods (`show`, `bench`, `eval`) | `--method A --method B` |
| `--model MODEL` | what is built: alias, hub id or directory | `--checkpoint` |
| `--checkpoint MODEL` | the original beside a build (`compare`, `bench`, `eval`) | `--model` |
| `--json` | the result as JSON on stdout | `bench --json FILE` |
| `--report FILE` | everything as JSON in a file (`compare`, `bench`) | |
| `--plot`, `--plot FILE`, `--no-plot` | draw a picture, or none | `frontier -o FILE` |
| `-o`, `--output` | what is written; must be given where it is large (`build`, `export`), else it has a default | |
"""


def page() -> str:
    """The whole page."""
    names = [*ORDER, *sorted(set(commands.commands) - set(ORDER))]
    return "\n".join([HEAD, *(section(name) for name in names if name in commands.commands)])


def section(name: str) -> str:
    """One command: usage, description, examples, and its options in groups."""
    command = commands.commands[name]
    context = click.Context(command, info_name=name, parent=click.Context(commands, info_name="trtprune"))
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## {name}", "", f"`{usage}`", ""]
    for paragraph in re.split(r"\n\s*\n", (command.help or "").strip()):
        if paragraph.lstrip().startswith("\b"):
            example = "\n".join(line.strip() if line.strip() else line for line in paragraph.splitlines()[1:])
            lines += ["```sh", re.sub(r"\\\n", r"\\\n    ", example), "```", ""]
        else:
            lines += [" ".join(paragraph.split()), ""]
    for group, options in grouped(command, context).items():
        if group != LAST[-1]:
            lines += [f"| {group} | |", "|---|---|", *(row(option, context) for option in options), ""]
    return "\n".join(lines)


def row(option: click.Option, context: click.Context) -> str:
    """One option as a row of a table."""
    record = option.get_help_record(context)
    assert record is not None
    names, text = (part.replace("|", "\\|") for part in record)
    aliases = getattr(option, "aliases", ()) if isinstance(option, Flag) else ()
    also = f" (also {', '.join(f'`{alias}`' for alias in aliases)})" if aliases else ""
    return f"| `{names}`{also} | {' '.join(text.split())} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the page is current")
    given = parser.parse_args()
    text = page()
    if not given.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE} is not current; run python docs/write_cli.py")


if __name__ == "__main__":
    main()
