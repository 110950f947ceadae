"""The command line as a whole: one spelling a flag, old ones still taken, a text for each, nothing cut."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from trtprune.cli import main
from trtprune.cli.flags import Command, Flag, Gathered, option

COMMANDS = sorted(main.commands)
# Meaning → where it is taken, and every spelling that is.
SAME = {
    "--json": (set(COMMANDS) - {"chat", "serve", "triton"}, ["--json"]),
    "--keep": ({"build", "export", "run", "chat", "show", "compare", "bench", "eval"}, ["--keep"]),
    "--methods": ({"bench", "eval", "show"}, ["--methods", "--method"]),
    "--method": ({"build", "export"}, ["--method", "--methods"]),
    "--checkpoint": ({"bench", "eval", "compare"}, ["--checkpoint", "--model"]),
    "--model": ({"build", "export"}, ["--model", "--checkpoint"]),
    "--plot": ({"bench", "eval", "compare", "frontier"}, ["--plot"]),
    "--no-plot": ({"bench", "eval", "compare", "frontier"}, ["--no-plot"]),
    "--output": ({"build", "export", "run", "show", "eval", "frontier"}, ["-o", "--output"]),
}


def help_of(*words: str, width: int = 80) -> str:
    done = CliRunner().invoke(main, [*words, "--help"], terminal_width=width)
    assert done.exit_code == 0
    return done.output


def options_of(name: str) -> list[click.Option]:
    return [p for p in main.commands[name].params if isinstance(p, click.Option)]


def spellings(parameter: click.Option) -> set[str]:
    return {*parameter.opts, *parameter.secondary_opts, *getattr(parameter, "aliases", ())}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_sentence_and_a_group(name: str) -> None:
    for parameter in options_of(name):
        text = (parameter.help or "").split("  [default", 1)[0]
        assert re.match(r"[A-Z].*\.$", text, re.DOTALL), (parameter.opts, text)
        assert isinstance(parameter, Flag), f"{parameter.opts} is in no group"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_narrow_terminal(name: str) -> None:
    for line in help_of(name).splitlines():
        # Names and choices that are longer than the column stand on a line of their own.
        assert len(line) <= 80 or re.match(r"  -\S", line), line
    headings = re.findall(r"^(\S.*):$", help_of(name), re.MULTILINE)
    assert headings[-1] == "Logging and help"
    assert "Output" not in headings[:-2]


def test_the_list_of_commands_is_not_cut() -> None:
    listed = help_of().partition("Commands:")[2]
    assert "..." not in listed
    for name in COMMANDS:
        short = main.commands[name].short_help or ""
        assert re.fullmatch(r"[A-Z].*[.?]", short), name
        assert short.split()[-1] in listed
    assert all(len(line) <= 80 for line in help_of().splitlines())


def examples(name: str) -> list[str]:
    text = (main.commands[name].help or "").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if re.match(r"\s*([A-Z_]+=\S+ )?trtprune ", line)]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_that_parse(name: str) -> None:
    found = [shlex.split(line.split("trtprune ", 1)[1]) for line in examples(name)]
    assert any(words[0] == name for words in found)
    for words in found:
        command = main.commands[words[0]]
        command.make_context(words[0], words[1:])


@pytest.mark.parametrize("flag", sorted(SAME))
def test_one_spelling_for_one_meaning(flag: str) -> None:
    where, every = SAME[flag]
    for name in COMMANDS:
        if name not in where:
            continue
        [parameter] = [p for p in options_of(name) if flag in p.opts]
        assert set(every) <= spellings(parameter), name
        for other in set(every) - set(parameter.opts):
            assert f"  {other} " not in help_of(name), "an alias is not listed"


@pytest.mark.parametrize("name", ["bench", "eval", "show"])
def test_lists_are_taken_with_commas_and_repeated(name: str) -> None:
    command = main.commands[name]
    rest = ["out", *{"eval": ["--data", "scenes"], "show": ["--image", "x.png"]}.get(name, [])]

    def read(*words: str) -> dict[str, Any]:
        given = command.make_context(name, [*rest, *words]).params
        return {key: given[key] for key in ("keeps", "methods")}

    wanted = {"keeps": (64, 16), "methods": "adafv,divprune:center=true"}
    assert read("--keep", "64,16", "--methods", "adafv,divprune:center=true") == wanted
    repeated = ("--keep", "64", "--keep", "16", "--method", "adafv", "--method", "divprune:center=true")
    assert read(*repeated) == wanted
    assert not any(read().values())


def read_bench(*words: str) -> dict[str, Any]:
    given = main.commands["bench"].make_context("bench", list(words)).params
    return {name: given[name] for name in ("json_file", "plot", "no_plot", "directory")}


def test_flags_with_an_optional_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("{}")
    nothing = {"json_file": None, "plot": None, "no_plot": False, "directory": Path("out")}
    assert read_bench("out") == nothing
    assert read_bench("out", "--json") == nothing | {"json_file": Path("-")}
    assert read_bench("--json", "out", "--keep", "64") == nothing | {"json_file": Path("-")}
    assert read_bench("out", "--json", "--keep", "64") == nothing | {"json_file": Path("-")}
    assert read_bench("out", "--json", "b.json", "--plot") == nothing | {"json_file": Path("b.json"), "plot": True}
    assert read_bench("--plot", "--", "out") == nothing | {"plot": True}
    assert read_bench("out", "--json=b.json", "--plot", "b.png", "--no-plot") == nothing | {
        "json_file": Path("b.json"), "plot": Path("b.png"), "no_plot": True,
    }  # fmt: skip


def test_no_plot_overrules_plot() -> None:
    from trtprune.cli.options import plot_options

    seen = []

    @click.command(cls=Command)
    @option("--number", type=int)
    @plot_options("Draw.")
    def command(plot: Any, number: int | None) -> None:
        seen.append((plot, number))

    for words in ([], ["--plot"], ["--plot", "x.png", "--number", "3"], ["--plot", "--no-plot"], ["--no-plot"]):
        assert CliRunner().invoke(command, words).exit_code == 0
    assert seen == [(None, None), (True, None), (Path("x.png"), 3), (False, None), (False, None)]


def test_options_that_reach_a_command_as_one_object() -> None:
    inner = Gathered("inner", dict, (option("--a", type=int, default=1), option("--b", "other", type=int)))
    outer = Gathered("outer", dict, (option("--c"), inner, option("--d")), apart=("d",))
    seen: list[Any] = []

    @click.command(cls=Command)
    @outer
    @option("--e")
    def command(outer: Any, d: str | None, e: str | None) -> None:
        seen.append((outer, d, e))

    assert [parameter.name for parameter in command.params] == ["c", "a", "other", "d", "e"]
    out = CliRunner().invoke(command, ["--b", "3", "--c", "x", "--d", "y", "--e", "z"])
    assert out.exit_code == 0, out.output
    assert seen == [({"c": "x", "inner": {"a": 1, "other": 3}}, "y", "z")]
