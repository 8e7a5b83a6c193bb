"""Compile the kernels for GPUs that need not be there, and print what each takes of the device, as JSON lines.

Run as a program of its own: kernels that were defined for Triton's interpreter cannot be compiled.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from landmark.ops.fused import launch

_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


def described(value: Any, path: tuple[int, ...], constants: dict, attributes: dict) -> Any:
    """The type of an argument as a launch would find it; notes constants, and what divides by 16."""
    if isinstance(value, tuple):
        kinds = [described(x, (*path, i), constants, attributes) for i, x in enumerate(value)]
        return type(value)(*kinds)
    if value is None or (isinstance(value, int) and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, torch.Tensor) or value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return _TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32" if value < 2**31 else "i64"


def compiled(kernel: Any, args: list[Any], constants: dict[str, int], tiling: triton.Config, target: int) -> Any:
    values, attributes = {}, {}
    signature = {
        name: described(x, (i,), values, attributes)
        for i, (name, x) in enumerate(zip(kernel.arg_names, args, strict=False))
    }
    for name, x in {**constants, **tiling.kwargs}.items():
        values[(kernel.arg_names.index(name),)] = x
        signature[name] = "constexpr"
    source = ASTSource(kernel, signature, values, attributes)
    options = {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def usage(binary: bytes) -> dict[str, int]:
    """Registers of a thread, bytes of its stack, and how often innermost loops reach for that stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()

        def dump(option: str) -> str:
            tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
            return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout

        found = re.search(r"REG:(\d+) STACK:(\d+)", dump("-res-usage"))
        code = [(int(place, 16), text) for place, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", dump("-sass"))]
    assert found
    jumps = [(place, re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)) for place, text in code]
    loops = [(int(to[1], 16), place) for place, to in jumps if to and int(to[1], 16) < place]
    innermost = [(a, b) for a, b in loops if not any(a <= c and d < b for c, d in loops)]
    spilled = [x for x, text in code if re.search(r"\b(LDL|STL)\b", text) and any(a <= x <= b for a, b in innermost)]
    return {"registers": int(found[1]), "stack": int(found[2]), "spilled_in_loops": len(spilled)}


def calls(dtype: torch.dtype, dim: int, block_size: int, masked: bool) -> list[tuple[Any, list[Any], dict[str, int]]]:
    """The launches of one forward and backward pass, recorded instead of made."""
    recorded = []

    def record(kernel: Any, _: Any, args: list[Any], constants: dict[str, int], __: torch.dtype) -> None:
        recorded.append((kernel, args, constants))

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    query, key, value = (empty(2, heads, 8192, dim, dtype=dtype) for heads in (8, 2, 2))
    extras: list[Any] = [None] * 4
    if masked:
        extras = [empty(8, dtype=dtype), empty(2, 2, 8192), empty(2, 2, 2, 8192), empty(1)]
    inputs = launch.Inputs(query, key, value, *extras, empty(2))
    rules = launch.Rules(block_size, 5 if masked else 0, 0.1, 30.0 if masked else None, 0.1 if masked else 0.0)
    launch.run, original = record, launch.run
    out, lse = launch.launch_forward(inputs, rules)
    launch.launch_backward(inputs, rules, query, out, lse)
    launch.run = original
    return recorded


def main() -> None:
    sweep = [
        f"{dtype},{dim},{block_size}{masked}"
        for dtype in ("bfloat16", "float16", "float32")
        for dim in (64, 128, 256)
        for block_size in (63, 50, 7, 100, 200)
        for masked in ("", ",masked")
    ]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=sweep, help="dtype,head_dim,block_size and perhaps ,masked")
    parser.add_argument("--target", type=int, default=90, help="compute capability, times ten")
    parser.add_argument("--first", action="store_true", help="only the first of the tile sizes that would be tried")
    options = parser.parse_args()
    for case in options.cases:
        dtype_name, dim, block_size, *masked = case.split(",")
        dtype = getattr(torch, dtype_name)
        for kernel, args, constants in calls(dtype, int(dim), int(block_size), bool(masked)):
            tilings = launch.tilings(kernel, launch.columns(constants), constants["WIDTH"], dtype.itemsize)
            for tiling in tilings[:1] if options.first else tilings:
                binary = compiled(kernel, args, constants, tiling, options.target)
                found = {
                    "kernel": kernel.__name__,
                    "case": case,
                    "target": options.target,
                    "tiling": [*tiling.kwargs.values(), tiling.num_warps, tiling.num_stages],
                    "shared": binary.metadata.shared,
                    **usage(binary.asm["cubin"]),
                }
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
