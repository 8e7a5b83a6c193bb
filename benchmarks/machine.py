"""The machine: device, number type, threads, and the speeds that floors are computed from."""

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from landmark.bench.options import CommonOptions
from landmark.bench.timing import seconds_of

# Big enough to run at full speed, and for copies to leave the caches.
MATMUL_WIDTH = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
CPUINFO = Path("/proc/cpuinfo")
_TRIES = 10


@dataclass(frozen=True)
class Machine:
    """Where a benchmark runs. Speeds are the best of a few tries, with the same device, dtype and threads."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    name: str
    flops_per_s: float
    bytes_per_s: float

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize


def prepare(options: CommonOptions) -> Machine:
    """Sets torch's threads for the whole process and measures the machine.

    Raises ValueError for a device that is not there.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device is 'cuda' and torch sees no CUDA device: use --device cpu, or a build of torch for this GPU"
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if options.device == "cuda" else "float32"))
    name = torch.cuda.get_device_name(device) if options.device == "cuda" else _processor()
    return Machine(
        device,
        dtype,
        torch.get_num_threads(),
        name,
        flops_per_s(device, dtype),
        bytes_per_s(device),
    )


def _processor() -> str:
    told = re.search(r"model name\s*: (.*)", CPUINFO.read_text()) if CPUINFO.exists() else None
    return told[1] if told else platform.processor() or platform.machine()


def flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product."""
    width = MATMUL_WIDTH[device.type]
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * width**3 / _best(lambda: torch.mm(a, b, out=out), device)


def bytes_per_s(device: torch.device) -> float:
    """Bytes a second between processor and main memory: of a copy (read and written) or a sum (read), the faster."""
    source = torch.ones(COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source).zero_()
    copying = 2 * source.nbytes / _best(lambda: target.copy_(source), device)
    return max(copying, source.nbytes / _best(source.sum, device))


def _best(call: Callable[[], Tensor], device: torch.device) -> float:
    call()
    return min(seconds_of(call, device) for _ in range(_TRIES))
