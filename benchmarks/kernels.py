"""Jagged attention against dense masked attention and padded SDPA: time and largest live tensor of forward + backward.

Lengths: one row has the full length L, so that no batch could be padded to less; the others are quantiles of
P(length > x L) = (1 − x)^(1/m − 1), whose mean m is set so that the whole batch has the wanted fill, in a fixed random
order. The rivals get their inputs padded already; nobody pays for padding or unpadding. Largest live tensor: the most
bytes of one storage among the inputs and all results of operators in a pass, as PyTorch dispatches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dynamix.models.kernels.dispatch import attention

SIZES = ((64, 256), (256, 128), (64, 512))
FILLS = (0.05, 0.15, 0.45, 0.60)
HEADS, WIDTH, THREADS = 4, 64, 2
MUSTS = {"x dense": 9.0, "x padded": 3.0, "smaller dense": 22.0, "smaller padded": 2.1}
"""At 15 % fill or less; the published factors of docs/method.md's source, less for memory against padded."""
LEAST_AT_60 = 1.0
HEADER = (
    f"{'B':>4} {'L':>4} {'fill':>5} {'ΣL²/BL²':>8} {'ours ms':>8} {'padded ms':>10} {'dense ms':>9} {'x padded':>9} "
    f"{'x dense':>8} {'ours MB':>8} {'smaller padded':>15} {'smaller dense':>14} {'scratch MB':>11}  verdict"
)


@dataclass(frozen=True)
class Way:
    """One way to compute the same attention: inputs with gradients, the function, what arrives from above."""

    inputs: tuple[Tensor, ...]
    run: Callable[..., Tensor]
    grad: Tensor

    def step(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Output and gradients of one forward and backward pass."""
        out = self.run(*self.inputs)
        return out, torch.autograd.grad(out, self.inputs, self.grad)


class Largest(TorchDispatchMode):
    """Bytes of the storages that operators return while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[int, int] = {}
        self.alive: list[Any] = []  # so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                store = leaf.untyped_storage()
                if store.data_ptr() not in self.bytes:
                    self.alive.append(store)
                    self.bytes[store.data_ptr()] = store.nbytes()
        return out


def main(rounds: int) -> None:
    """Print one line a cell, then what holds."""
    torch.set_num_threads(THREADS)
    print(f"H = {HEADS}, d = {WIDTH}, float32, {THREADS} threads, medians of {rounds} interleaved rounds")
    print(HEADER, flush=True)
    missed = [line for cell in cells(rounds) for line in cell]
    print("musts at 15 % fill or less: " + ", ".join(f"{k} >= {v:g}" for k, v in MUSTS.items()))
    print(f"must at 60 %: x padded >= {LEAST_AT_60:g}")
    print("all hold" if not missed else "missed:\n  " + "\n  ".join(missed))
    on_gpu(rounds)


def cells(rounds: int) -> Iterator[list[str]]:
    """Prints each cell; gives the musts that it misses."""
    for rows, longest in SIZES:
        for fill in FILLS:
            lengths = draw_lengths(rows, longest, fill)
            ways = make_ways(lengths, longest)
            check_equal(ways, lengths)
            size = {name: largest(way) for name, way in ways.items()}
            figures = ratios(times(ways, rounds)) | {
                "smaller padded": size["padded"][0] / size["ours"][0],
                "smaller dense": size["dense"][0] / size["ours"][0],
            }
            missed = misses(figures, rows, longest, fill)
            square = float((lengths.astype(float) ** 2).sum() / rows / longest**2)
            print(
                f"{rows:4} {longest:4} {lengths.sum() / rows / longest:5.2f} {square:8.3f} {figures['ours']:8.1f} "
                f"{figures['padded']:10.1f} {figures['dense']:9.0f} {figures['x padded']:9.1f} "
                f"{figures['x dense']:8.1f} {size['ours'][0] / 1e6:8.2f} {figures['smaller padded']:15.1f} "
                f"{figures['smaller dense']:14.1f} {size['ours'][1] / 1e6:11.2f}  {'miss' if missed else 'ok'}",
                flush=True,
            )
            yield missed


def draw_lengths(rows: int, longest: int, fill: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Lengths (B,) of the distribution in the module's text."""
    mean = (fill * rows - 1) / (rows - 1)
    u = (np.arange(rows - 1) + 0.5) / (rows - 1)
    others = np.rint(longest * (1 - (1 - u) ** (mean / (1 - mean)))).astype(np.int64)
    return np.random.default_rng(0).permutation(np.append(others, longest))


def make_ways(lengths: np.ndarray[Any, np.dtype[np.int64]], longest: int) -> dict[str, Way]:
    """ours on jagged inputs; padded (boolean mask), padded_add (added mask) and dense on the same, padded."""
    offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
    generator = torch.Generator().manual_seed(0)
    flat = [torch.randn(int(offsets[-1]), HEADS, WIDTH, generator=generator) for _ in range(4)]
    real = torch.arange(longest) < torch.from_numpy(lengths)[:, None]  # (B, L)

    def pad(x: Tensor) -> Tensor:
        room = x.new_zeros(*real.shape, HEADS, WIDTH)
        room[real] = x
        return room.transpose(1, 2).contiguous()  # (B, H, L, d)

    mask = real[:, None, None, :]
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)

    def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def padded_add(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=added)

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT / WIDTH**0.5).masked_fill(~mask, -1e30).softmax(3) @ v

    wide = [pad(x) for x in flat]
    ways = {"ours": Way(leaves(flat[:3]), lambda q, k, v: attention(q, k, v, offsets), flat[3])}
    return ways | {f.__name__: Way(leaves(wide[:3]), f, wide[3]) for f in (padded, padded_add, dense)}


def leaves(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.clone().requires_grad_() for x in tensors)


def check_equal(ways: dict[str, Way], lengths: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    """AssertionError unless output and gradients of all ways agree to 2e-5 of their largest value."""
    longest = ways["dense"].inputs[0].shape[2]
    real = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
    ours = ways["ours"].step()
    for name in ("padded", "padded_add", "dense"):
        theirs = ways[name].step()
        for a, b in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
            torch.testing.assert_close(
                a, b.transpose(1, 2)[real], atol=2e-5 * float(a.detach().abs().max()), rtol=0
            )


def largest(way: Way) -> tuple[int, int]:
    """Most bytes of one storage in a pass, and among those that are no input, output or gradient of it."""
    with Largest() as seen:
        out, grads = way.step()
    own = {x.untyped_storage().data_ptr() for x in (*way.inputs, way.grad, out, *grads)}
    inputs = max(x.untyped_storage().nbytes() for x in (*way.inputs, way.grad))
    return max(inputs, *seen.bytes.values()), max(n for at, n in seen.bytes.items() if at not in own)


def times(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round, all ways in turn in each; dense, the slowest by far, in at most 3 of them."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in ways if turn % 2 == 0 else list(ways)[::-1]:
            if name == "dense" and turn >= 3:
                continue
            started = perf_counter()
            ways[name].step()
            found[name].append(1e3 * (perf_counter() - started))
    return found


def ratios(found: dict[str, list[float]]) -> dict[str, float]:
    """Medians, and medians of the ratios inside a round; padded is the faster of its two masks each time."""
    padded = [min(pair) for pair in zip(found["padded"], found["padded_add"], strict=True)]
    return {
        "ours": median(found["ours"]),
        "padded": median(padded),
        "dense": median(found["dense"]),
        "x padded": median(p / o for p, o in zip(padded, found["ours"], strict=True)),
        "x dense": median(d / o for d, o in zip(found["dense"], found["ours"], strict=False)),
    }


def misses(figures: dict[str, float], rows: int, longest: int, fill: float) -> list[str]:
    """The musts that a cell misses, each with its figure."""
    where = f"({rows}, {longest}) at {fill:.0%}"
    bars = MUSTS if fill <= 0.15 else {"x padded": LEAST_AT_60} if fill >= 0.6 else {}
    missed = [f"{where}: {k} {figures[k]:.1f} < {bar:g}" for k, bar in bars.items() if figures[k] < bar]
    bound = longest / (fill * WIDTH)
    return [
        f"{m} (B·H·L² over the jagged input itself, N·H·d, is {bound:.1f}: no kernel can reach the bar here)"
        if "smaller dense" in m and bound < MUSTS["smaller dense"]
        else m
        for m in missed
    ]


def on_gpu(rounds: int) -> None:
    """The Triton kernel against torch's varlen and padded SDPA in bfloat16, where there is a CUDA device."""
    if not torch.cuda.is_available():
        print("GPU part: not run, this machine has no CUDA device")
        return
    from torch.nn.attention.varlen import varlen_attn

    print(
        f"{torch.cuda.get_device_name()}, bfloat16, ms\n"
        f"{'B':>4} {'L':>5} {'fill':>5} {'ours':>8} {'varlen':>8} {'padded':>8}"
    )
    for rows, longest in (*SIZES, (64, 4096)):
        for fill in FILLS:
            lengths = draw_lengths(rows, longest, fill)
            offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()])).cuda()
            flat = [
                torch.randn(int(offsets[-1]), HEADS, WIDTH, device="cuda", dtype=torch.bfloat16)
                for _ in range(4)
            ]
            wide = [
                torch.randn(rows, HEADS, longest, WIDTH, device="cuda", dtype=torch.bfloat16)
                for _ in range(4)
            ]
            mask = (torch.arange(longest, device="cuda") < offsets.diff()[:, None])[:, None, None, :]
            ends = offsets.int()
            ways = {
                "ours": Way(
                    leaves(flat[:3]),
                    lambda q, k, v, o=offsets: attention(q, k, v, o, backend="triton"),
                    flat[3],
                ),
                "varlen": Way(
                    leaves(flat[:3]),
                    lambda q, k, v, e=ends, m=longest: varlen_attn(q, k, v, e, e, m, m),
                    flat[3],
                ),
                "padded": Way(
                    leaves(wide[:3]),
                    lambda q, k, v, m=mask: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
                    wide[3],
                ),
            }
            torch.testing.assert_close(ways["ours"].step()[0], ways["varlen"].step()[0], atol=2e-2, rtol=2e-2)
            line = "".join(f"{gpu_ms(way, rounds):9.3f}" for way in ways.values())
            print(f"{rows:4} {longest:5} {fill:5.2f}{line}", flush=True)


def gpu_ms(way: Way, rounds: int) -> float:
    """Median milliseconds of a pass by CUDA events, after three passes to warm up."""
    found = []
    for turn in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way.step()
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:
            found.append(start.elapsed_time(end))
    return median(found)
