"""Attention as an operation: landmark attention against causal attention, which computes as many pairs."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.compare import FOREIGN_REFUSALS, Method, Row, Task, compare, skipped
from benchmarks.machine import Machine, shortage
from benchmarks.options import OpsOptions
from benchmarks.roofline import Pairs, Work, attention_work, causal_pairs, landmark_pairs
from landmark.ops.attention import landmark_attention

BASELINE = "sdpa"
METHODS = {
    "cpu": (BASELINE, "flex", "blockwise", "reference"),
    "cuda": (BASELINE, "cudnn", "flex", "blockwise", "fused", "reference"),
}
OURS = ("blockwise", "fused", "reference")
PASSES = ("forward", "forward+backward")
REFERENCE_LIMIT = 512  # beyond this length the dense matrices take minutes and gigabytes

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Shapes of one comparison: query [batch,heads,length,head_dim], keys and values [batch,kv_heads,...]."""

    batch: int = 1
    heads: int = 8
    kv_heads: int = 8
    length: int = 4096
    head_dim: int = 64
    block_size: int = 63


_GPU = Case(heads=16, kv_heads=16, length=8192, head_dim=128)
CASES = {
    "cpu": (
        Case(length=512),
        Case(length=2048),
        Case(length=4096),
        Case(batch=8, heads=4, kv_heads=2, length=512, block_size=31),
    ),
    "cuda": (
        replace(_GPU, length=4096),
        _GPU,
        replace(_GPU, length=32768),
        replace(_GPU, head_dim=64),
        replace(_GPU, heads=8, kv_heads=8, head_dim=256),
        replace(_GPU, heads=32, kv_heads=8),
    ),
}


def cases(options: OpsOptions, lengths: list[int] | None) -> list[Case]:
    """The device's list, or one case per length in the shape that the options name."""
    names = ("batch", "heads", "kv_heads", "head_dim", "block_size")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if lengths is None and not given:
        return list(CASES[options.device])
    given.setdefault("kv_heads", given.get("heads", Case.heads))
    return [Case(length=length, **given) for length in lengths or [Case.length]]


def methods(options: OpsOptions) -> tuple[str, ...]:
    """The methods that the options name, the baseline first; raises ValueError for one that is not for the device."""
    able = METHODS[options.device]
    if options.methods is None:
        return able
    names = [name.strip() for name in options.methods.split(",")]
    unknown = [name for name in names if name not in able]
    if unknown:
        raise ValueError(
            f"methods are {options.methods!r}: {unknown[0]!r} is none on {options.device}, choose from"
            f" {', '.join(able)}"
        )
    return tuple(name for name in able if name in names or name == BASELINE)


def run(
    machine: Machine, case: Case, names: tuple[str, ...], rounds: int, progress: Callable[[int], object]
) -> Iterator[Row]:
    """The rows of one case, forward first; `progress` gets `2 * (rounds + 1)` steps."""
    # Every case is a program of its own to the compiler, which gives up after some.
    torch.compiler.reset()
    both = [Task({"bench": "ops", **asdict(case), "pass": name}, BASELINE) for name in PASSES]
    lack = shortage(_held_bytes(case, machine), machine.device)
    if lack is not None:
        for task in both:
            yield from skipped(machine, task, names, f"inputs, output and gradients: {lack}")
        progress(2 * (rounds + 1))
        return
    inputs = _inputs(case, machine)
    for task, backward in zip(both, (False, True), strict=True):
        able = [_method(name, case, machine, inputs, backward) for name in names]
        yield from compare(machine, task, able, rounds, progress)


def _held_bytes(case: Case, machine: Machine) -> int:
    """Queries, keys, values, output, and the gradients of all four."""
    return 4 * case.batch * (case.heads + case.kv_heads) * case.length * case.head_dim * machine.size


def _inputs(case: Case, machine: Machine) -> tuple[Tensor, ...]:
    """Query, key, value, and the gradient of the output."""
    generator = torch.Generator(machine.device).manual_seed(0)

    def normal(heads: int) -> Tensor:
        shape = (case.batch, heads, case.length, case.head_dim)
        return torch.randn(shape, generator=generator, device=machine.device).to(machine.dtype)

    q, k, v = (normal(heads).requires_grad_() for heads in (case.heads, case.kv_heads, case.kv_heads))
    return q, k, v, normal(case.heads)


def _method(name: str, case: Case, machine: Machine, inputs: tuple[Tensor, ...], backward: bool) -> Method:
    if name == "reference" and case.length > REFERENCE_LIMIT:
        return Method(name, missing=f"dense matrices: timed up to length {REFERENCE_LIMIT}")
    attention = _attention(name, case, machine)
    pairs = landmark_pairs(case.length, case.block_size) if name in OURS else causal_pairs(case.length)
    return Method(
        name,
        _call(attention, inputs, backward),
        work=lambda: _work(case, pairs, machine, backward),
        refusals=Method.refusals if name in OURS else FOREIGN_REFUSALS,
    )


def _call(attention: Attention, inputs: tuple[Tensor, ...], backward: bool) -> Callable[[], object]:
    q, k, v, upstream = inputs
    if backward:
        return lambda: torch.autograd.grad(attention(q, k, v), (q, k, v), upstream)

    # FlexAttention refuses inputs with gradients on a CPU, even where none are computed.
    plain = q.detach(), k.detach(), v.detach()
    return lambda: attention(*plain)


def _attention(name: str, case: Case, machine: Machine) -> Attention:
    grouped = case.heads != case.kv_heads
    if name in OURS:
        return lambda q, k, v: landmark_attention(q, k, v, block_size=case.block_size, backend=name)
    if name == "flex":
        return _flex(case, machine, grouped)
    kernel = {BASELINE: SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[name]
    # On a CPU, and for wider numbers, there is no choice of kernels to fix.
    forced = machine.device.type == "cuda" and machine.size == 2

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kernel) if forced else nullcontext():
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    return causal


def _flex(case: Case, machine: Machine, grouped: bool) -> Attention:
    """Causal attention within documents; the whole length is one, so that as many pairs are computed."""
    document = torch.zeros(case.length, dtype=torch.int32, device=machine.device)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[query] == document[key])

    mask = create_block_mask(seen, None, None, case.length, case.length, device=machine.device.type)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=grouped)  # pyright: ignore[reportReturnType]


def _work(case: Case, pairs: Pairs, machine: Machine, backward: bool) -> Work:
    shape = asdict(case)
    del shape["block_size"]
    return attention_work(pairs, **shape, size=machine.size, backward=backward)
