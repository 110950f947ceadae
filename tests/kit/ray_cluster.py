"""A Ray cluster of two nodes on this machine, each with processes of its own, in an environment of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

PROJECT = Path(__file__).resolve().parents[2]
READY_S = 300
MODEL = "ServeReplica:trtprune:Model"


def install(root: Path) -> Path:
    """An environment with Ray and this package; its folder of programs.

    ``TRTPRUNE_TEST_RAY`` names one that is there already: Ray is large.
    """
    if there := os.environ.get("TRTPRUNE_TEST_RAY"):
        return Path(there) / "bin"
    subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
    pip = [root / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{PROJECT}[cpu,ray]"], check=True)
    return root / "venv/bin"


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_for(condition: Callable[[], Any], what: str, seconds: float = READY_S) -> None:
    """Waits for a condition.

    Raises:
        AssertionError: naming ``what`` if it does not come true.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if condition():
                return
        time.sleep(0.3)
    raise AssertionError(f"{what}: not in {seconds:.0f} s")


class Cluster:
    """The running cluster, with one CPU on each of its nodes.

    Attributes:
        address: Where the application answers.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._http, self._gcs = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self._http}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def _run(self, name: str, *words: object) -> None:
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{self._programs}:{environment['PATH']}"
        with self.log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [self._programs / str(words[0]), *map(str, words[1:])], stdout=log, stderr=log, env=environment
            )

    def log(self, name: str) -> Path:
        """The file with what a process says."""
        return self._folder / f"{name}.log"

    def start(self) -> None:
        """Starts both nodes."""
        common = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]
        common += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        head = ["--head", "--node-ip-address=127.0.0.1", f"--port={self._gcs}", "--include-dashboard=false"]
        head += [f"--ray-client-server-port={free_port()}", f"--temp-dir={self._folder}"]
        self._run("head", "ray", "start", *head, *common)
        wait_for(lambda: self._listens(), "the head node")
        self._run("worker", "ray", "start", f"--address=127.0.0.1:{self._gcs}", "--node-ip-address=127.0.0.1", *common)

    def _listens(self) -> bool:
        assert self._processes["head"].poll() is None, self.log("head").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._gcs)) == 0

    def serve(self, **args: Any) -> None:
        """Runs the example's configuration with other arguments, until all replicas answer."""
        config = yaml.safe_load((PROJECT / "examples/ray-serve.yaml").read_text())
        config["http_options"]["port"] = self._http
        config["applications"][0]["args"] = args
        (self._folder / "serve.yaml").write_text(yaml.safe_dump(config))
        self._run("serve", "serve", "run", f"--address=127.0.0.1:{self._gcs}", self._folder / "serve.yaml")
        try:
            wait_for(lambda: self.replicas() >= args["min_replicas"], "the replicas")
        except AssertionError:
            for name in self._processes:
                print(f"{name}:\n{self.log(name).read_text(errors='replace')[-3000:]}")
            raise

    def replicas(self) -> int:
        """Replicas that say their metrics."""
        assert self._processes["serve"].poll() is None, self.log("serve").read_text(errors="replace")[-4000:]
        text = httpx.get(f"{self.address}/metrics", timeout=10).text
        return len(set(re.findall(r'trtprune_batch_rows\{replica="(\w+)"\}', text)))

    def _of(self, node: str) -> list[psutil.Process]:
        return psutil.Process(self._processes[node].pid).children(recursive=True)

    def models(self, node: str) -> list[psutil.Process]:
        """The processes with a model on a node."""
        found = []
        for process in self._of(node):
            with contextlib.suppress(psutil.Error):
                if MODEL in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill_replica(self) -> None:
        """Kills the model on the head node."""
        [replica] = self.models("head")
        replica.kill()

    def kill_node(self) -> None:
        """Kills all processes of the second node."""
        self._kill("worker")

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait(30)

    def close(self) -> None:
        """Kills what is left."""
        for name in ("serve", "worker", "head"):
            if name in self._processes:
                self._kill(name)


@contextlib.contextmanager
def cluster(programs: Path) -> Iterator[Cluster]:
    """A running cluster; nothing of it is left behind the block."""
    # Ray's sockets lie in it, and the names of sockets are short.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    found = Cluster(programs, folder)
    try:
        found.start()
        yield found
    finally:
        found.close()
        shutil.rmtree(folder, ignore_errors=True)
