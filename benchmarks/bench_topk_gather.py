"""The kernels of plugins/ on the GPU at hand: right, and how fast.

    python benchmarks/bench_topk_gather.py [--quick] [--json benchmarks/results/topk-gather.json]

1. Every dtype, 1 to 32,768 tokens, ties, NaN, infinities, zeros of both signs, bit for bit against NumPy.
2. Time of a call against torch.topk + sort + gather, and against the bytes it must move over the bandwidth of a large
   copy measured in the same run. Calls over input sets larger together than the L2 cache, in one CUDA graph; medians
   of its replays, contenders in turn.

Needs an NVIDIA GPU, torch with CUDA, and the library (built from plugins/ with cmake and nvcc if it is not there).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _gpu_bench import graph_medians, measure_bandwidth, need_gpu
from _kernels import Kernels, TorchMemory, build, check_greedy, check_topk
from _machine import machine, write_json

TOKENS = [1, 2, 3, 31, 32, 33, 255, 256, 257, 576, 1024, 2047, 2880, 4095, 4096, 4097, 8192, 16384, 32767, 32768]
# tokens, keep, width, batch: LLaVA-1.5 at four budgets, its batch of 8, LLaVA-NeXT, and beyond one block
TIMED = [
    (576, 64, 4096, 1), (576, 128, 4096, 1), (576, 192, 4096, 1), (576, 576, 4096, 1), (576, 64, 4096, 8),
    (2880, 320, 4096, 1), (4096, 1024, 4096, 1), (32768, 3840, 4096, 1),
]  # fmt: skip
GREEDY_CHECKED = [(1, 1), (5, 5), (33, 7), (64, 0), (576, 64), (1000, 300), (2880, 64)]
GREEDY = [(576, 64), (576, 192), (2880, 320)]
MOST_BYTES = 24 << 30


def check_dims(quick: bool) -> list[tuple[int, int, int, int]]:
    """(batch, tokens, width, keep) of every check."""
    found = []
    for number, tokens in enumerate(TOKENS[:: 4 if quick else 1]):
        keeps = {1, max(1, tokens // 9), max(1, tokens // 2), tokens}
        for keep in sorted(keeps):
            # Widths that end inside, at and behind a 16-byte vector; fewer bytes where there are many rows.
            width = [1, 3, 8, 64, 129, 1024][(number + keep) % 6] if tokens <= 4096 else [1, 7, 16][keep % 3]
            found.append((1 + (number + keep) % 3 if tokens <= 4096 else 1, tokens, width, keep))
    return found


def call_bytes(tokens: int, keep: int, width: int, batch: int, itemsize: int = 2, score_bytes: int = 4) -> int:
    """The fewest bytes a call moves: scores and kept rows read, kept rows and indices written."""
    return batch * (tokens * score_bytes + 2 * keep * width * itemsize + 8 * keep)


def check_all(kernels: Any, memory: Any, quick: bool) -> dict[str, Any]:
    """Runs every check; what failed, and how many there were."""
    wrong: list[str] = []
    count = 0
    for seed, dims in enumerate(check_dims(quick)):
        for name, problem in check_topk(kernels, memory, dims, seed):
            count += 1
            if problem:
                wrong.append(f"topk_gather: {name}: {problem}")
    for seed, (tokens, steps) in enumerate(GREEDY_CHECKED):
        for name, problem in check_greedy(kernels, memory, (1 + seed % 2, tokens, steps), seed):
            count += 1
            if problem:
                wrong.append(f"maxmin_select: {name}: {problem}")
    return {"count": count, "failed": len(wrong), "first_failures": wrong[:10]}


def _sets(bytes_touched: int, bytes_held: int, l2: int) -> int:
    """Input sets that together exceed the L2 cache four times, as far as memory goes."""
    return max(2, min(512, math.ceil(4 * l2 / bytes_touched), MOST_BYTES // bytes_held))


def time_topk(kernels: Any, dims: Sequence[int], l2: int, replays: int) -> dict[str, list[float]]:
    """Microseconds a call of each contender, one number a replay."""
    import torch

    tokens, keep, width, batch = dims
    count = _sets(call_bytes(*dims), batch * tokens * width * 2, l2)
    scores = [torch.rand(batch, tokens, device="cuda") for _ in range(count)]
    features = [torch.randn(batch, tokens, width, device="cuda", dtype=torch.float16) for _ in range(count)]
    kept = [torch.empty(batch, keep, width, device="cuda", dtype=torch.float16) for _ in range(count)]
    indices = [torch.empty(batch, keep, device="cuda", dtype=torch.int64) for _ in range(count)]
    size = kernels.workspace(batch, tokens, keep)
    scratch = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")

    def ours(i: int) -> None:
        kernels.topk_gather(
            scores[i].data_ptr(), "float32", features[i].data_ptr(), "float16", (batch, tokens, width, keep),
            kept[i].data_ptr(), indices[i].data_ptr(), (scratch.data_ptr(), size) if size else (0, 0),
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip

    def theirs(i: int) -> None:
        best = torch.sort(torch.topk(scores[i], keep).indices).values
        if batch == 1:
            torch.index_select(features[i], 1, best[0], out=kept[i])
        else:
            torch.gather(features[i], 1, best[..., None].expand(-1, -1, width), out=kept[i])

    def copy(i: int) -> None:
        # The rows alone, were they together: what no gather can beat.
        kept[i].copy_(features[i][:, :keep])

    return graph_medians({"ours": ours, "torch": theirs, "copy": copy}, count, replays)


def time_greedy(kernels: Any, tokens: int, steps: int, replays: int) -> dict[str, list[float]]:
    """Microseconds a selection: the one-block kernel, and torch's operators a step."""
    import torch

    points = torch.nn.functional.normalize(torch.randn(tokens, 64, device="cuda"), dim=1)
    similarity, close = (points @ points.T).contiguous(), torch.rand(tokens, device="cuda")
    out, picks = torch.empty_like(close), torch.empty(steps, dtype=torch.int32, device="cuda")

    def ours(_: int) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        dims = (1, tokens, steps)
        kernels.maxmin_select(
            similarity.data_ptr(), close.data_ptr(), dims, "maxmin", out.data_ptr(), picks.data_ptr(), stream
        )

    def theirs(_: int) -> None:
        left = close.clone()
        for _step in range(steps):
            best = left.argmin(0, keepdim=True)
            left = torch.maximum(left, similarity.index_select(0, best)[0])
            left.index_fill_(0, best, 3.0e38)

    return graph_medians({"ours": ours, "torch": theirs}, 4, replays)


def _row(name: str, times: dict[str, list[float]], floor_us: float | None) -> dict[str, Any]:
    from _machine import summary

    middle = {who: summary(samples)["median"] for who, samples in times.items()}
    row: dict[str, Any] = {"case": name, "times_faster_than_torch": round(middle["torch"] / middle["ours"], 2)}
    if floor_us is not None:
        row |= {"bytes_over_bandwidth_us": round(floor_us, 2), "times_floor": round(middle["ours"] / floor_us, 2)}
    return row | {f"{who}_us": summary(samples) for who, samples in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="libtrtprune_kernels.so.  Default: what was built from plugins/")
    parser.add_argument("--quick", action="store_true", help="a quarter of the checks, fewer replays")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch = need_gpu("bench_topk_gather.py")
    kernels = Kernels(given.library or build())
    replays = 10 if given.quick else 30
    checks = check_all(kernels, TorchMemory(), given.quick)
    print(f"{checks['count']} checks against NumPy, {checks['failed']} failed", *checks["first_failures"], sep="\n  ")
    bandwidth = measure_bandwidth()
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s (bytes read and written)")
    l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
    rows = []
    timed: list[tuple[str, Callable[[], dict[str, list[float]]], float | None]] = []
    for dims in TIMED[:: 3 if given.quick else 1]:
        name = "topk_gather {}->{} x {} float16, batch {}".format(*dims)
        timed.append((name, lambda d=dims: time_topk(kernels, d, l2, replays), 1e6 * call_bytes(*dims) / bandwidth))
    for tokens, steps in GREEDY:
        name = f"maxmin_select {tokens}->{steps}"
        timed.append((name, lambda t=tokens, s=steps: time_greedy(kernels, t, s, replays), None))
    for name, measure, floor in timed:
        row = _row(name, measure(), floor)
        rows.append(row)
        torch.cuda.empty_cache()
        times = "  ".join(f"{who} {row[f'{who}_us']['median']:8.2f} us" for who in ("ours", "torch"))
        print(f"{row['times_faster_than_torch']:6.2f}x  {name:<44} {times}  floor {floor or 0:6.2f} us")
    if given.json:
        command = "python benchmarks/bench_topk_gather.py" + (" --quick" if given.quick else "")
        result = {"command": command, "machine": machine(), "kernels": kernels.version, "checks": checks}
        write_json(given.json, result | {"copy_bandwidth_bytes_per_s": bandwidth, "rows": rows})
    if checks["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
