"""A fleet on a real Ray cluster of two nodes, one replica and one node of which are killed under load."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import trtprune
from tests.kit.ray_cluster import Cluster, cluster, install, wait_for
from tests.kit.serving import message
from tests.kit.tiny_files import complete
from tests.serving.test_load import Asked, alone, ask, questions

KEEP = 5
CLIENTS = 6


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ray")
    trtprune.build(complete(root / "model"), root / "out", keep=6, method="adafv")
    return root / "out"


@pytest.fixture(scope="module")
def served(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(install(tmp_path_factory.mktemp("environment"))) as found:
        found.serve(directory=str(out), keep=KEEP, min_replicas=2, max_batch_size=2, max_queued_requests=16)
        yield found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_replica_and_a_node_are_killed_under_load(served: Cluster, out: Path) -> None:
    """Every request is answered, with the answer of the library: no token of a stream is missing or there twice."""
    assert [len(served.models(node)) for node in ("head", "worker")] == [1, 1]
    load = questions(48, 5)
    vlm = trtprune.load(out, threads=1)
    # The fleet has a budget of its own for requests without one.
    wanted = {asked: alone(vlm, replace(asked, keep=asked.keep or KEEP)) for asked in dict.fromkeys(load)}
    done, faults = threading.Event(), []
    counts: Counter[int] = Counter()

    def client(number: int) -> None:
        with httpx.Client(base_url=served.address, timeout=300) as connection:
            at = number
            while not done.is_set():
                asked: Asked = load[at % len(load)]
                try:
                    found = ask(connection, asked)
                    if found != wanted[asked]:
                        faults.append((asked, found, wanted[asked]))
                except Exception as error:
                    faults.append((asked, repr(error)))
                counts[number] += 1
                at += CLIENTS

    def answered(more: int) -> None:
        start = sum(counts.values())
        wait_for(lambda: faults or sum(counts.values()) >= start + more, f"{more} answers")

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client, number) for number in range(CLIENTS)]
        try:
            answered(12)
            served.kill_replica()
            answered(24)
            wait_for(lambda: served.models("head") and served.replicas() == 2, "another replica in its place")
            answered(12)
            served.kill_node()
            answered(36)
        finally:
            done.set()
        for one in running:
            one.result()
    assert not faults
    assert min(counts.values()) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_more_than_the_fleet_takes(served: Cluster) -> None:
    """Those above the queue are refused, all others answered."""
    body = {"messages": [message("What is this?", 1)], "max_tokens": 20}

    def one(_number: int) -> int:
        response = httpx.post(f"{served.address}/v1/chat/completions", json=body, timeout=300)
        if response.status_code == 429:
            assert response.json()["error"]["code"] == "queue_full"
        else:
            assert response.status_code == 200, response.text
        return response.status_code

    with ThreadPoolExecutor(60) as pool:
        found = Counter(pool.map(one, range(60)))
    assert set(found) == {200, 429}
    assert found[200] >= 16
    text = httpx.get(f"{served.address}/metrics").text
    assert f'trtprune_requests_total{{replica="door",status="429"}} {found[429]}' in text
    refused = httpx.post(f"{served.address}/v1/chat/completions", json={**body, "max_tokens": -1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_client_that_hangs_up(served: Cluster) -> None:
    """Its row is freed long before its answer would have ended."""
    body = {"messages": [message("What is this?", 1)], "max_tokens": 60, "stream": True}
    for _ in range(4):
        with httpx.stream("POST", f"{served.address}/v1/chat/completions", json=body, timeout=60) as response:
            assert next(response.iter_lines()).startswith("data: ")

    def idle() -> bool:
        text = httpx.get(f"{served.address}/metrics", timeout=10).text
        active = re.findall(r"^trtprune_active_requests\{.*\} (\S+)$", text, re.MULTILINE)
        return bool(active) and set(active) == {"0.0"}

    wait_for(idle, "freed rows", 30)
