"""``docker/``: linted, its files and pins consistent, its commands run.  No Docker engine is needed, or used.

The packages of the runtime image are checked for real: ``trtprune run`` and ``inspect`` answer in a process that can
import nothing else.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trtprune
from tests.kit.runtime_kit import picture
from tests.kit.tiny import Tiny
from tests.kit.tiny_files import complete

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
VARIANTS = ("cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@dataclass(frozen=True)
class Instruction:
    """One instruction of the Dockerfile, continuation lines joined; ``stage`` is the name behind ``AS``."""

    word: str
    text: str
    stage: str


def read_dockerfile() -> list[Instruction]:
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found, stage = [], ""
    for line in joined.splitlines():
        if line.strip():
            word, text = line.split(maxsplit=1)
            if word == "FROM":
                stage = text.split(" AS ")[1].strip()
            found.append(Instruction(word, text.strip(), stage))
    return found


INSTRUCTIONS = read_dockerfile()


def of(word: str, *stages: str) -> list[Instruction]:
    return [i for i in INSTRUCTIONS if i.word == word and (not stages or i.stage in stages)]


def parents(stage: str) -> Iterator[str]:
    """``stage`` and the stages it is based on."""
    while stage:
        yield stage
        base = next(i.text for i in of("FROM") if i.stage == stage).split()[0]
        stage = base if any(i.stage == base for i in of("FROM")) else ""


def requirements(path: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pins(found: list[Requirement]) -> dict[str, str]:
    """Package → version; every line must be ``==`` one version."""
    result = {}
    for requirement in found:
        [specifier] = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not pinned"
        assert "*" not in specifier.version
        name = canonicalize_name(requirement.name)
        assert name not in result, f"{name} twice"
        result[name] = specifier.version
    return result


CONSTRAINTS = pins(requirements(DOCKER / "constraints.txt"))


def test_hadolint() -> None:
    done = subprocess.run([BIN / "hadolint", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "hadolint ignore" not in (DOCKER / "Dockerfile").read_text()
    assert not list(ROOT.glob(".hadolint.y*ml"))


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    """The linter that passes above does look."""
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install numpy\n")
    done = subprocess.run([BIN / "hadolint", tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert {"DL3006", "DL3013"} <= set(re.findall(r"DL\d+", done.stdout))


def test_base_images_have_a_full_version() -> None:
    outside = {i.text.split()[0] for i in of("FROM")} - {i.stage for i in of("FROM")}
    assert outside
    for image in outside:
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z-]+", image), image


def test_images_run_as_nobody_in_particular() -> None:
    for image in ("builder", "runtime", "serve"):
        last = of("USER", *parents(image))[-1]
        uid, gid = (int(part) for part in last.text.split(":"))
        assert uid >= 1000
        assert gid >= 1000
        assert last is [i for i in INSTRUCTIONS if i.stage == image][-1], "nothing may run as root after USER"
        assert any(f"--uid {uid} " in i.text for i in of("RUN", *parents(image)))


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    patterns = [p for p in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if p and p[0] != "#"]
    assert patterns[0] == "*", "everything is left out but what is named"
    stages = [i.stage for i in of("FROM")]
    copies = 0
    for copy in of("COPY"):
        words = shlex.split(copy.text)
        if words[0].startswith("--from="):
            assert stages.index(words[0].removeprefix("--from=")) < stages.index(copy.stage)
            assert words[1] == words[2] == "/opt/venv", "a virtual environment works only where it was made"
            continue
        copies += 1
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            ignored = False
            for pattern in patterns:
                if any(fnmatch(part, pattern.lstrip("!")) for part in (source, source.split("/")[0])):
                    ignored = not pattern.startswith("!")
            assert not ignored, source
    assert copies >= 4
    for mount in re.findall(r"type=bind,from=(\S+?),", (DOCKER / "Dockerfile").read_text()):
        assert mount in stages


def test_no_secrets() -> None:
    names = [word.split("=")[0] for i in INSTRUCTIONS if i.word in ("ARG", "ENV") for word in shlex.split(i.text)]
    assert names
    for name in names:
        assert not re.search("TOKEN|SECRET|PASS|KEY|CREDENTIAL", name), name


def test_onnxruntime_reports_to_nobody(tmp_path: Path) -> None:
    """With the images' environment, importing it leaves no trace; telemetry's database would be one."""
    words = [word for image in of("ENV", "image") for word in shlex.split(image.text)]
    environment = {"HOME": str(tmp_path)} | dict(word.split("=", 1) for word in words if word.startswith("ORT_"))
    subprocess.run([sys.executable, "-c", "import onnxruntime"], env=environment, check=True)
    assert "ORT_DISABLE_TELEMETRY" in environment
    assert not list(tmp_path.iterdir())


def test_labels_and_health_check() -> None:
    for image in ("builder", "runtime", "serve"):
        labels = " ".join(i.text for i in of("LABEL", *parents(image)))
        for key in ("title", "description", "licenses", "version", "revision"):
            assert f"org.opencontainers.image.{key}=" in labels
        assert len(of("HEALTHCHECK", *parents(image))) == 1
    assert PROJECT["project"]["license"] in " ".join(i.text for i in of("LABEL"))


# -- pins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["runtime.txt", "serve.txt", *(f"variants/{v}.txt" for v in VARIANTS)])
def test_pins_are_those_of_the_constraints(file: str) -> None:
    found = pins(requirements(DOCKER / file))
    assert found
    assert found.items() <= CONSTRAINTS.items()


def test_variants_are_those_documented() -> None:
    assert sorted(path.stem for path in (DOCKER / "variants").iterdir()) == sorted(VARIANTS)
    for text in ((DOCKER / "Dockerfile").read_text(), (ROOT / "docs/docker.md").read_text()):
        for variant in VARIANTS:
            assert variant in text


def own_requirements(*extras: str) -> list[Requirement]:
    texts = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        texts += PROJECT["project"]["optional-dependencies"][extra]
    # An extra may name others of our own; the caller lists those.
    return [requirement for text in texts if (requirement := Requirement(text)).name != "trtprune"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_the_extra_of_that_name(variant: str) -> None:
    """Each variant brings what ``pip install trtprune[variant]`` would, at versions pyproject.toml accepts."""
    found = pins(requirements(DOCKER / f"variants/{variant}.txt"))
    extra = PROJECT["project"]["optional-dependencies"][variant]
    assert {canonicalize_name(Requirement(text).name) for text in extra} <= found.keys()
    assert len({"onnxruntime", "onnxruntime-gpu"} & found.keys()) == 1


def test_pins_meet_the_lower_bounds() -> None:
    bounds = own_requirements("plot", "compare", "serve", *VARIANTS)
    assert len(bounds) > 15
    for requirement in [*bounds, *(Requirement(text) for text in PROJECT["build-system"]["requires"])]:
        version = CONSTRAINTS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version}"


def test_constraints_leave_nothing_open() -> None:
    """Of each pinned package that is installed here at that version, everything it depends on is pinned too."""
    looked = 0
    for name, version in CONSTRAINTS.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.version != version:
            continue
        looked += 1
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pinned = CONSTRAINTS.get(canonicalize_name(requirement.name))
                assert pinned, f"{name} needs {requirement}"
                assert requirement.specifier.contains(pinned, prereleases=True), f"{name} needs {requirement}"
    print(f"{looked} of {len(CONSTRAINTS)} pins are installed here")


def test_what_pip_is_told_on_the_command_line() -> None:
    """Package specs in RUN lines: pinned as in the constraints, extras that exist, no torch anywhere."""
    specs, files = [], []
    for run in of("RUN"):
        for command in run.text.split("&&"):
            words = shlex.split(command)
            if "pip" not in words:
                continue
            words = words[words.index("pip") + 1 :]
            assert {"install", "wheel"} & set(words)
            takes = {"-r", "-c", "--python", "--wheel-dir"}
            for flag, word in zip(["", *words], words, strict=False):
                if flag in ("-r", "-c"):
                    files.append(word.replace("/requirements", "docker").replace("${VARIANT}", "cpu"))
                elif not word.startswith("-") and flag not in takes and word not in ("install", "wheel"):
                    specs.append(word)
    assert len(files) == 5
    for file in files:
        assert (ROOT / file).is_file()
    packages = [spec for spec in specs if "==" in spec]
    assert set(specs) - set(packages) == {
        ".",
        "/wheels/trtprune-*.whl",
        "trtprune[compare] @ file://$(echo /wheels/trtprune-*.whl)",
    }
    assert pins([Requirement(package) for package in packages]).items() <= CONSTRAINTS.items()
    assert len(packages) == 1
    assert "compare" in PROJECT["project"]["optional-dependencies"]
    assert not {"torch", "transformers", "accelerate"} & CONSTRAINTS.keys()


# -- commands ---------------------------------------------------------------------------------------------------


def test_commands_run() -> None:
    """ENTRYPOINT with CMD, and HEALTHCHECK, with this environment's programs in place of the image's."""
    [entry], [default] = ([json.loads(i.text) for i in of(word)] for word in ("ENTRYPOINT", "CMD"))
    done = subprocess.run([BIN / entry[0], *entry[1:], *default], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: trtprune")
    [check] = of("HEALTHCHECK")
    program, script = json.loads(check.text.partition(" CMD ")[2])
    assert Path(program) == Path("/opt/venv/bin/python")
    [copied] = [i for i in of("COPY") if i.text.endswith(" " + script)]
    done = subprocess.run([sys.executable, ROOT / copied.text.split()[0]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trtprune, onnxruntime" in done.stdout


IMPORT_NAMES = {
    "opentelemetry-api": "opentelemetry",
    "pillow": "PIL",
    "protobuf": "google",
    "pygments": "pygments",
    "onnxruntime-gpu": "onnxruntime",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
}
RUNTIME = ("runtime.txt", "variants/cpu.txt")
# Runs a script, or a module as __main__, where only the standard library, trtprune and the packages named import.
ONLY = """
import importlib.machinery, runpy, sys
names, target = set(sys.argv[1].split(",")), sys.argv[2]

class Only(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        own = top in sys.stdlib_module_names or top.startswith("_sysconfigdata")
        return super().find_spec(name, path, target) if own or top in names else None

place = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[place] = Only
sys.argv[:] = sys.argv[2:]
(runpy.run_path if target.endswith(".py") else runpy.run_module)(target, run_name="__main__")
"""


def image_command(*arguments: Any, files: Sequence[str] = RUNTIME, without: str = "") -> list[str]:
    """A command that imports only what these lists of packages have."""
    listed = {name for file in files for name in pins(requirements(DOCKER / file))}
    listed |= {"flatbuffers", "packaging"}  # that onnxruntime brings with it
    names = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in listed} - {without}
    return [sys.executable, "-c", ONLY, ",".join(sorted(names | {"trtprune"})), *map(str, arguments)]


def in_image(*arguments: Any, without: str = "") -> subprocess.CompletedProcess[str]:
    """Run with what the CPU variant's runtime image has."""
    return subprocess.run(image_command(*arguments, without=without), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docker")
    trtprune.build(complete(folder / "model", Tiny()), folder / "out", keep=5)
    picture().save(folder / "out.png")
    return folder / "out"


def test_runtime_packages_are_enough(engine: Path) -> None:
    image = engine.with_suffix(".png")
    done = in_image("trtprune", "run", engine, "--image", image, "--prompt", "what", "--max-new-tokens", "3", "--json")
    assert done.returncode == 0, done.stderr
    expected = trtprune.load(engine).generate(str(image), "what", max_new_tokens=3)
    assert json.loads(done.stdout)["token_ids"] == expected.token_ids
    for command in (("inspect", engine), ("methods",), ("--version",)):
        done = in_image("trtprune", *command)
        assert done.returncode == 0, done.stderr
    done = in_image("trtprune", "show", engine, "--image", image, "-o", engine.with_suffix(".kept.png"))
    assert done.returncode == 0, done.stderr


def test_the_runtime_image_really_lacks_the_rest(engine: Path) -> None:
    """The stand-in for the image would notice a package that is not in it."""
    done = in_image("trtprune", "inspect", engine, without="onnx")
    assert done.returncode == 1
    assert "onnx" in done.stderr
    done = in_image(DOCKER / "healthcheck.py", without="onnxruntime")
    assert done.returncode == 1
    done = in_image(DOCKER / "healthcheck.py", without="numpy")
    assert done.returncode == 1
    assert "numpy" in done.stderr
    assert in_image(DOCKER / "healthcheck.py").returncode == 0


def test_building_in_the_runtime_image_says_what_is_missing(engine: Path) -> None:
    done = in_image("trtprune", "build", "--model", engine.parent / "model", "--keep", "4", "-o", engine.parent / "no")
    assert done.returncode == 1
    assert done.stderr.startswith("error: onnx_ir is not installed, and this command needs it\nhint:  ")
    assert len(done.stderr.splitlines()) == 2
    assert not (engine.parent / "no").exists()


# -- compose ----------------------------------------------------------------------------------------------------


def composed() -> dict[str, Any]:
    """The service of the compose file, its variables with their defaults or names."""
    text = (DOCKER / "compose.yaml").read_text()
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", text)
    [service] = yaml.safe_load(re.sub(r"\$\{(\w+):\?[^}]*\}", r"\1", text))["services"].values()
    return dict(service)


def test_compose_builds_a_target_that_is_there() -> None:
    service = composed()
    build = service["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert build["target"] in {i.stage for i in of("FROM")}
    assert build["args"]["VARIANT"] in VARIANTS
    names = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    for document in ("docs/serving.md", "docs/docker.md"):
        assert names <= set(re.findall(r"\w+", (ROOT / document).read_text())), document


def test_compose_publishes_the_server_and_asks_for_a_key() -> None:
    service = composed()
    command = service["command"]
    [port] = [i.text for i in of("EXPOSE", "serve")]
    assert service["ports"] == [f"8000:{port}"]
    assert command[command.index("--port") + 1] == port
    assert command[command.index("--host") + 1] == "0.0.0.0"
    # Whoever publishes a port on all addresses must have chosen a key; the engines are not to be written.
    assert "TRTPRUNE_API_KEY: ${TRTPRUNE_API_KEY:?" in (DOCKER / "compose.yaml").read_text()
    engines = next(volume for volume in service["volumes"] if volume.startswith("OUT:"))
    assert engines == f"OUT:{command[1]}:ro"


def test_the_server_of_the_image(engine: Path) -> None:
    """The compose file's command with only the image's packages, and its health check."""
    service = composed()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [{"/data/out": str(engine), "0.0.0.0": "127.0.0.1", "8000": port}.get(w, w) for w in service["command"]]
    words = image_command("trtprune", *command, files=(*RUNTIME, "serve.txt"))
    _, program, script, address = service["healthcheck"]["test"]
    assert (program, script) == ("/opt/venv/bin/python", "/opt/healthcheck.py")
    check = [sys.executable, DOCKER / "healthcheck.py", address.replace("8000", port)]
    with subprocess.Popen(
        words, env=os.environ | {"TRTPRUNE_API_KEY": "k"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            for _ in range(120):
                health = subprocess.run(check, capture_output=True, text=True, check=False)
                if health.returncode == 0 or server.poll() is not None:
                    break
                time.sleep(0.5)
            assert health.returncode == 0, health.stderr
            assert "ok" in health.stdout
        finally:
            server.terminate()
            assert server.stderr is not None
            said = server.stderr.read()
    assert server.returncode == 0, said
    health = subprocess.run(check, capture_output=True, text=True, check=False)
    assert health.returncode == 1
    assert len(health.stderr.splitlines()) == 1
