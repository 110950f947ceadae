"""Timing on an NVIDIA GPU with torch; shared by the scripts here."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any


def need_gpu(script: str) -> Any:
    """torch with a usable GPU; otherwise one line, and exit status 1."""
    try:
        import torch
    except ImportError:
        sys.exit(f"{script}: needs torch with CUDA, which is not installed")
    if not torch.cuda.is_available():
        sys.exit(f"{script}: needs an NVIDIA GPU and its driver; torch {torch.__version__} sees none")
    return torch


def measure_bandwidth(gigabytes: float = 4.0, repeats: int = 20) -> float:
    """Bytes a second that a large copy on the GPU reads and writes; the median of its repeats."""
    import torch

    count = int(gigabytes * 2**30) // 4
    source = torch.rand(count, device="cuda")
    target = torch.empty_like(source)
    samples = []
    for number in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        if number >= 3:
            samples.append(start.elapsed_time(end) / 1e3)
    return 2 * source.numel() * source.element_size() / statistics.median(samples)


def graph_medians(contenders: Mapping[str, Callable[[int], None]], count: int, replays: int) -> dict[str, list[float]]:
    """Microseconds a call of each contender, one number a replay, contenders in turn.

    Args:
        contenders: Called with the number of an input set; put work on torch's current stream.
        count: Input sets; a graph holds one call of each.
        replays: Of each graph.
    """
    import torch

    graphs = {}
    for name, call in contenders.items():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for i in range(min(count, 3)):  # libraries load and allocate in the first calls, which a graph forbids
                call(i)
        torch.cuda.current_stream().wait_stream(side)
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for i in range(count):
                call(i)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(replays + 2):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if number >= 2:
                samples[name].append(1e3 * start.elapsed_time(end) / count)
    return samples


def loop_medians(call: Callable[[], None], count: int, replays: int) -> list[float]:
    """Microseconds a call, one number for each loop of ``count``; with what it takes to ask for them."""
    import torch

    samples = []
    for number in range(replays + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        if number >= 2:
            samples.append(1e3 * start.elapsed_time(end) / count)
    return samples
