"""The real Triton server of the wheel ``nvidia-pytriton``, with its Python backend, in an environment of its own.

The server's interpreter is the one that runs the tests, but with the environment's packages: its Python backend (2.51)
was compiled for NumPy 1.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
WHEEL = "nvidia-pytriton==0.7.0"


@dataclass(frozen=True)
class Triton:
    """An installed server.

    Attributes:
        packages: The environment's ``site-packages``.
        backends: The folder of backends.
    """

    packages: Path
    backends: Path

    @classmethod
    def install(cls, root: Path) -> Triton:
        """Installs server and this package below ``root``."""
        subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
        pip = [root / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, WHEEL, f"{PROJECT}[cpu,triton]"], check=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        packages = root / f"venv/lib/python{version}/site-packages"
        server = packages / "pytriton/tritonserver"
        backends = root / "backends"
        shutil.copytree(server / "backends/python", backends / "python")
        stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copy2(stub, backends / "python")
        # The interpreter inside of the stub knows neither the environment nor PYTHONPATH.
        utils = backends / "python/triton_python_backend_utils.py"
        text = utils.read_text(encoding="utf-8")
        path = f"import sys\nsys.path.insert(0, {str(packages)!r})\n"
        utils.write_text(text.replace("import json\n", f"{path}import json\n", 1), encoding="utf-8")
        return cls(packages, backends)

    @contextlib.contextmanager
    def serve(self, repository: Path, log: Path) -> Iterator[tuple[int, int]]:
        """A running server; gives its ports of HTTP and gRPC."""
        http, grpc = _free_port(), _free_port()
        libraries = [sysconfig.get_config_var("LIBDIR"), str(self.packages / "nvidia_pytriton.libs")]
        command = [
            self.packages / "pytriton/tritonserver/bin/tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={self.backends}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            "--allow-metrics=false",
        ]
        environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}
        environment.pop("PYTHONPATH", None)
        with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
            try:
                _wait(process, f"http://127.0.0.1:{http}/v2/health/ready", log)
                yield http, grpc
                assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(url, timeout=1).status == 200:
                return
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        time.sleep(0.2)
    raise AssertionError(f"not ready:\n{log.read_text(errors='replace')[-3000:]}")
