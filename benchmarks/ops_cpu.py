"""Times the attention backends on the CPU beside PyTorch's causal attention.

    python benchmarks/ops_cpu.py [--repeats 7] [--threads 2]

Contenders take turns within each repeat, so that a slow moment of the machine falls on all of them alike.
A figure is the median in milliseconds, followed by its ratio to causal `scaled_dot_product_attention`.

On a machine that does other work too, set OMP_WAIT_POLICY=passive. Threads that spin while they wait take the
time of those they wait for, and blockwise, made of many short operations, then seems many times slower.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from landmark.ops import landmark_attention

_REFERENCE_LIMIT = 512  # beyond this length the dense matrices take minutes and gigabytes


class Case(NamedTuple):
    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int
    block_size: int

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        return f"{self.batch} x {heads} x {self.length} x {self.head_dim}, block {self.block_size}"


CASES = (
    Case(1, 8, 8, 512, 64, 63),
    Case(1, 8, 8, 2048, 64, 63),
    Case(1, 8, 8, 4096, 64, 63),
    Case(8, 4, 2, 512, 64, 31),
)


def contenders(case: Case) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=case.heads != case.kv_heads)

    def backend(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda q, k, v: landmark_attention(q, k, v, block_size=case.block_size, backend=name)

    chosen = {"causal": causal, "blockwise": backend("blockwise")}
    if case.length <= _REFERENCE_LIMIT:
        chosen["reference"] = backend("reference")
    return chosen


def seconds(attention: Callable[..., Tensor], inputs: tuple[Tensor, ...], upstream: Tensor) -> tuple[float, float]:
    """Forward without gradients, and forward with backward."""
    start = time.perf_counter()
    with torch.no_grad():
        attention(*inputs)
    middle = time.perf_counter()
    torch.autograd.grad(attention(*inputs), inputs, upstream)
    return middle - start, time.perf_counter() - middle


def medians(case: Case, repeats: int) -> Iterator[tuple[str, float, float]]:
    generator = torch.Generator().manual_seed(0)

    def normal(heads: int) -> Tensor:
        return torch.randn(case.batch, heads, case.length, case.head_dim, generator=generator)

    inputs = tuple(normal(n).requires_grad_() for n in (case.heads, case.kv_heads, case.kv_heads))
    upstream = normal(case.heads)
    functions = contenders(case)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, attention in functions.items():
            pair = seconds(attention, inputs, upstream)
            if repeat:  # the first round warms up
                taken[name].append(pair)
    for name, pairs in taken.items():
        forward, both = (statistics.median(times) for times in zip(*pairs, strict=True))
        yield name, forward, both


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the attention backends on the CPU.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'case':36}{'backend':12}{'forward ms':>12}{'ratio':>7}{'with backward ms':>18}{'ratio':>7}")
    for case in CASES:
        base = (0.0, 0.0)
        for name, forward, both in medians(case, options.repeats):
            if name == "causal":
                base = forward, both
            ratios = forward / base[0], both / base[1]
            print(f"{case!s:36}{name:12}{forward * 1e3:12.1f}{ratios[0]:7.2f}{both * 1e3:18.1f}{ratios[1]:7.2f}")


if __name__ == "__main__":
    main()
