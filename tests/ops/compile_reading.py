"""Compile the kernels of reading for GPUs that need not be there, and print what each takes, as JSON lines.

Run as a program of its own: kernels that were defined for Triton's interpreter cannot be compiled.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.autotuner import Autotuner

sys.path.insert(0, str(Path(__file__).parent / "fused"))
from compile_kernels import compiled, usage

from landmark.ops import choose_triton, topk_triton
from landmark.ops.retrieved import Pages, gpu
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring


class Recorder:
    """Stands for a kernel and notes the arguments of its launches."""

    def __init__(self) -> None:
        self.launches: list[tuple[list[Any], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, enable_fp_fusion, num_warps=4, **constants: self.launches.append((list(args), constants))


def blocks_calls(dtype: torch.dtype, dim: int, stride: int) -> Iterator[tuple[str, Any, list[Any], dict[str, Any]]]:
    """The launches for single queries, for tiles of few queries and for large tiles."""
    query, buffer = torch.empty(1, 4, 16, dim, dtype=dtype), torch.empty(1, 2, 16, stride, dim, dtype=dtype)
    table = torch.zeros(1, 4, 16, 4, dtype=torch.long)
    angles = torch.empty(16, dim)
    kernel, gpu.blocks_kernel = gpu.blocks_kernel, Recorder()
    for few, shared in ((1 << 20, 0), (0, 1 << 20), (0, 0)):
        gpu._FEW_PAIRS, gpu._SHARED_FROM = few, shared
        rotation = Rotation(angles, angles, "half")
        gpu.triton_blocks(query, Pages(buffer, buffer, table), table, rotation, Scoring(0.1, 30.0))
    for args, constants in gpu.blocks_kernel.launches:
        yield f"stride {stride}, tile {constants['M']} x {constants['N']}", kernel, args, constants
    gpu.blocks_kernel = kernel


def search_calls(dtype: torch.dtype, dim: int, rows: int) -> Iterator[tuple[str, Any, list[Any], dict[str, Any]]]:
    """The two launches for a group of so many heads."""
    originals = topk_triton.best_of_part_kernel, topk_triton.best_of_all_kernel
    topk_triton.unsupported_reason = lambda *_: None
    topk_triton.best_of_part_kernel, topk_triton.best_of_all_kernel = recorders = Recorder(), Recorder()
    numbers = torch.zeros(1, 4096, dtype=torch.long)
    topk_triton.search_landmarks(
        torch.empty(1, 2 * rows, 1, dim, dtype=dtype), torch.empty(1, 2, 4096, dim, dtype=dtype), numbers, 4
    )
    for original, recorder in zip(originals, recorders, strict=True):
        for args, constants in recorder.launches:
            yield f"{rows} queries", original, args, constants
    topk_triton.best_of_part_kernel, topk_triton.best_of_all_kernel = originals


def choose_calls(dim: int) -> Iterator[tuple[str, Any, list[Any], dict[str, Any]]]:
    """The launch for a chunk of queries, with few blocks to choose and with the most."""
    kernel, choose_triton.choose_blocks_kernel = choose_triton.choose_blocks_kernel, Recorder()
    rotation = Rotation(torch.empty(64, dim), torch.empty(64, dim), "half")
    whole = torch.zeros(1, 32, dtype=torch.long)
    for k in (4, choose_triton.MOST_CHOSEN):
        choose_triton.choose_blocks(
            torch.empty(1, 4, 32, dim), torch.empty(1, 2, 4096, dim), rotation,
            positions=whole, bounds=whole[:, :3], first=whole[0, :1], modulus=4096, stride=64, k=k, stingy=True,
        )  # fmt: skip
    for args, constants in choose_triton.choose_blocks_kernel.launches:
        yield f"{constants['KEPT']} chosen", kernel, args, constants
    choose_triton.choose_blocks_kernel = kernel


def tilings(kernel: Any, args: list[Any], constants: dict[str, Any]) -> list[triton.Config]:
    """What is tried for a launch."""
    if not isinstance(kernel, Autotuner):
        return [triton.Config({})]
    kernel.nargs = dict(zip(kernel.arg_names, args, strict=False))
    return kernel.prune_configs(constants)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--strides", nargs="*", type=int, default=[64, 51, 256])
    parser.add_argument("--groups", nargs="*", type=int, default=[1, 2, 4, 8, 16], help="query heads to a key head")
    parser.add_argument("--target", type=int, default=90)
    options = parser.parse_args()
    for name in options.dtypes:
        dtype = getattr(torch, name)
        for dim in options.dims:
            calls = [call for stride in options.strides for call in blocks_calls(dtype, dim, stride)]
            calls += [call for rows in options.groups for call in search_calls(dtype, dim, rows)]
            calls += choose_calls(dim)  # queries and landmark keys are in float32, whatever the model
            for label, kernel, args, constants in calls:
                for tiling in tilings(kernel, args, constants):
                    bare = kernel.fn if isinstance(kernel, Autotuner) else kernel
                    binary = compiled(bare, args, constants, tiling, options.target)
                    shape = {"kernel": bare.__name__, "case": label, "dtype": name, "dim": dim}
                    used = {**usage(binary.asm["cubin"]), "shared": binary.metadata.shared}
                    found = {**shape, "warps": tiling.num_warps, **used}
                    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
