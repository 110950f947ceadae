"""The installed C++ package: what it shows, what it needs, and programs that are built with nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import trtprune
from tests.kit import cpp_build, cpp_package
from tests.kit.cpp_package import without_times

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "cpp/examples"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cpp_package.install(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def examples(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cpp_package.build_project(EXAMPLES, tmp_path_factory.mktemp("examples"), package)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cpp_package.engines(tmp_path_factory.mktemp("engines"))


def library(package: Path) -> Path:
    (path,) = package.glob("lib*/**/libtrtprune.so")
    return path


def start(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=cpp_build.environment(), **options)


def test_only_the_interface_is_visible(package: Path) -> None:
    """No template of the standard library, nothing of nlohmann::json or of the library's own rooms."""
    names = cpp_build.run("nm", "-D", "-C", "--defined-only", library(package)).splitlines()
    names = [line.split(maxsplit=2)[2] for line in names]
    classes = r"trtprune::(Error|Image|Vlm|Conversation|Result)::"
    rtti = r"(typeinfo|typeinfo name|vtable) for trtprune::\w*Error$"
    foreign = [name for name in names if not re.match(rf"trtprune_\w+(@|$)|{classes}|{rtti}", name)]
    assert foreign == []
    header = (package / "include/trtprune/trtprune.h").read_text()
    declared = set(re.findall(r"\b(trtprune_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)))
    assert {name.partition("@")[0] for name in names if name.startswith("trtprune_")} == declared
    for method in ("Vlm::load", "Vlm::generate", "Vlm::generate_batch", "Conversation::ask", "Image::from_memory"):
        assert any(name.startswith(f"trtprune::{method}(") for name in names), method


def test_what_the_library_needs(package: Path) -> None:
    text = cpp_build.run("readelf", "-d", library(package))
    assert re.findall(r"SONAME.*\[(.*)\]", text) == ["libtrtprune.so.0.1"]
    needed = set(re.findall(r"NEEDED.*\[([^\].]*)", text))
    assert needed <= {"libjpeg", "libpng16", "libwebp", "libz", "libstdc++", "libm", "libgcc_s", "libc"} | {
        "ld-linux-x86-64"
    }
    assert "RPATH" not in text
    assert "RUNPATH" not in text
    for file in package.rglob("*"):
        if file.is_file() and file.suffix != ".a":
            content = file.read_bytes()
            assert str(ROOT).encode() not in content, file
            assert str(package.parent).encode() not in content, file


@pytest.mark.parametrize("standard", ["c99", "c11", "c17"])
def test_the_header_is_c(package: Path, tmp_path: Path, standard: str) -> None:
    source = tmp_path / "a.c"
    source.write_text("#include <trtprune/trtprune.h>\nint main(void) { return (int)trtprune_abi_version() - 1; }\n")
    strict = ("-Wstrict-prototypes", "-Wmissing-prototypes")
    cpp_build.run("cc", f"-std={standard}", *WARNINGS, *strict, "-fsyntax-only", "-I", package / "include", source)


def test_each_header_stands_alone(package: Path, tmp_path: Path) -> None:
    headers = sorted((package / "include/trtprune").iterdir())
    assert {header.name for header in headers} >= {"vlm.hpp", "image.hpp", "error.hpp", "trtprune.h"}
    compilers = ["c++", *filter(None, [shutil.which("clang++"), shutil.which("clang++-14")])]
    for header in headers:
        source = tmp_path / "a.cpp"
        source.write_text(f"#include <trtprune/{header.name}>\n#include <trtprune/{header.name}>\n")
        for compiler in compilers:
            command = (compiler, "-std=c++17", *WARNINGS, "-Wconversion", "-fsyntax-only")
            cpp_build.run(*command, "-I", package / "include", source)


def test_pkg_config(package: Path, tmp_path: Path) -> None:
    """The words of trtprune.pc compile and link the C example, as they are."""
    (file,) = package.glob("lib*/**/trtprune.pc")
    values = {"pcfiledir": str(file.parent)}
    for name, value in re.findall(r"^(\w+)=(.*)$", file.read_text(), re.MULTILINE):
        values[name] = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], value)
    fields = dict(re.findall(r"^(Cflags|Libs|Version): (.*)$", file.read_text(), re.MULTILINE))
    flags, libs = (re.sub(r"\$\{(\w+)\}", lambda m: values[m[1]], fields[name]).split() for name in ("Cflags", "Libs"))
    if shutil.which("pkg-config"):
        environment = {**os.environ, "PKG_CONFIG_PATH": str(file.parent)}
        known = cpp_build.run("pkg-config", "--cflags", "--libs", "trtprune", env=environment).split()
        assert [Path(word).resolve() for word in known] == [Path(word).resolve() for word in (*flags, *libs)]
    cpp_build.run("cc", "-std=c99", EXAMPLES / "answer.c", *flags, "-o", tmp_path / "answer", *libs)
    assert trtprune.__version__.startswith(fields["Version"])
    assert start(tmp_path / "answer").returncode != 0


def test_answer(examples: Path, engines: Path) -> None:
    vlm = trtprune.load(engines, threads=1)
    for images, more, settings in (
        (["a.png"], [], {}),
        (["b.png"], ["--keep", "3"], {"keep": 3}),
        (["a.png", "b.png"], ["--keep", "16"], {"keep": 16}),
    ):
        flags = [word for image in images for word in ("--image", engines.parent / image)]
        command = [examples / "example_answer_cpp", engines, *flags, "--prompt", "What is it?", *more]
        result = start(*command, "--max-new-tokens", "24", "--threads", "1", "--json")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("\n") == 1
        assert result.stderr == ""
        paths = [engines.parent / image for image in images]
        expected = vlm.generate(paths, "What is it?", max_new_tokens=24, **settings).to_json()
        answer = json.loads(result.stdout)
        assert list(answer) == list(expected)
        assert without_times(answer) == without_times(expected)
        text = start(*command, "--max-new-tokens", "24").stdout
        assert text == expected["text"] + "\n"


def test_answer_says_what_is_wrong(examples: Path, engines: Path, tmp_path: Path) -> None:
    """An error and its hint, a line each, in the words of Python's errors; exit code 1, and 2 for wrong flags."""
    answer, image = examples / "example_answer_cpp", engines.parent / "a.png"
    missing = tmp_path / "none"
    with pytest.raises(trtprune.EngineDirError) as error:
        trtprune.load(missing)
    result = start(answer, missing, "--image", image, "--prompt", "x")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {error.value.message}\nhint:  {error.value.hint}\n"
    result = start(answer, engines, "--image", image, "--prompt", "x", "--keep", "0")
    assert result.returncode == 1
    assert re.fullmatch(r"error: .*keep.*\n(hint:  .*\n)?", result.stderr)
    for flags in ([], [engines], [engines, "--image", image], [engines, "--keep", "x"], [engines, "--odd", "x"]):
        result = start(answer, *flags)
        assert result.returncode == 2
        assert result.stderr.startswith("usage: answer OUT")


def test_nothing_is_reported(examples: Path, engines: Path, tmp_path: Path) -> None:
    """ONNX Runtime's wheels write an identifier below the home directory before they report their use."""
    environment = {**cpp_build.environment(), "HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [examples / "example_answer_cpp", engines, "--image", engines.parent / "a.png", "--prompt", "x"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []


def test_c_example(examples: Path, engines: Path) -> None:
    image = engines.parent / "a.png"
    result = start(examples / "example_answer_c", engines, image, "What is it?", "3")
    assert result.returncode == 0, result.stderr
    expected = trtprune.load(engines, threads=1).generate(image, "What is it?", keep=3)
    text, _, facts = result.stdout.removesuffix("\n").rpartition("\n")
    assert text == expected.text
    assert facts.startswith(f"{len(expected.token_ids)} tokens, 3 of 16 visual tokens kept, first token after ")
    result = start(examples / "example_answer_c", engines, engines.parent / "none.png", "x")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")


def test_chat(examples: Path, engines: Path) -> None:
    image = engines.parent / "a.png"
    questions = ["What is it?", "Why?", "And then?"]
    result = start(examples / "example_chat_cpp", engines, image, input="\n".join(questions))
    assert result.returncode == 0, result.stderr
    conversation = trtprune.load(engines, threads=1).chat(image)
    texts, errors = [], []
    for question in questions:
        try:
            texts.append(conversation.ask(question).text)
        except trtprune.InputError as error:  # answers of random weights are long, and soon fill the cache
            texts.append("")
            errors.append(f"error: {error.message}\nhint:  {error.hint}\n")
    assert result.stdout == "".join(text + "\n" for text in texts)
    assert result.stderr == "".join(errors)
    assert texts[0]
    assert errors


def test_interrupted_chat(examples: Path, engines: Path) -> None:
    """Ctrl-C during an answer ends that answer; the program goes on, and ends with its input."""
    command = [examples / "example_chat_cpp", engines, engines.parent / "a.png"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cpp_build.environment()
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"What is it?\n")
        program.stdin.flush()
        assert program.stdout.read(1)  # an answer has begun
        program.send_signal(signal.SIGINT)
        time.sleep(0.1)
        assert program.poll() is None or program.returncode == 0
        program.stdin.close()
        assert program.wait(60) == 0


@pytest.mark.parametrize("static", ["OFF", "ON"])
def test_consumer(package: Path, engines: Path, tmp_path: Path, static: str) -> None:
    build = cpp_package.build_project(EXAMPLES / "consumer", tmp_path / "build", package, f"-DSTATIC={static}")
    needed = cpp_build.run("readelf", "-d", build / "describe")
    assert ("libtrtprune.so.0.1" in needed) == (static == "OFF")
    result = start(build / "describe", engines)
    assert result.returncode == 0, result.stderr
    assert b"ORT_DISABLE_TELEMETRY" in (build / "describe").read_bytes() or static == "OFF"
    assert " of 16 visual tokens" in result.stdout


def test_consumer_of_another_version(package: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    lines = ["cmake_minimum_required(VERSION 3.22)", "project(x LANGUAGES CXX)", "find_package(trtprune 0.2 REQUIRED)"]
    (source / "CMakeLists.txt").write_text("\n".join(lines))
    command = [cpp_build.tool("cmake"), "-S", source, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={package}"]
    result = start(*command)
    assert result.returncode != 0
    assert 'compatible with requested version "0.2"' in result.stderr
