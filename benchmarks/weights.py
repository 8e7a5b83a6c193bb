"""Weights of linear layers in fewer bits: the time of a product with one row, and what rounding costs on text.

Products are those of a decode step. Beside BLAS and the loops of this package stand the kernels of PyTorch for weights
in 8 and in 4 bits, which torchao calls on a CPU; they are measured in bfloat16, for which they are written. Perplexity
is that of the same model with its linear layers rounded: to 8 bits as the package does, and to 4 bits in groups of 32
with a scale each, the largest number of a group being -8 times its scale; the head to 4 bits as well, or to 8.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.machine import by_turns, spread
from benchmarks.options import WeightsOptions
from landmark.assets import adapter_path, book_path
from landmark.data.text import read_text
from landmark.evaluation import perplexity
from landmark.evaluation.reading import Reading
from landmark.hf.adapter_file import load_adapter
from landmark.hf.int8 import Int8Linear
from landmark.hf.loading import read_tokenizer
from landmark.hf.tokenizer import encode
from landmark.ops.few_rows import few_rows_linear

GROUP = 32  # numbers in 4 bits with a scale of their own
ROWS = 16  # of weights: PyTorch's kernel for 4 bits takes multiples of it, so a few of the head are left out
Row = dict[str, object]


@torch.no_grad()
def run(options: WeightsOptions) -> Iterator[Row]:
    """Rows of products, one for each shape of a linear layer and kind of weights, then of perplexity."""
    model = load_adapter(options.model, options.adapter or adapter_path()).eval()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for shape, layer in {tuple(layer.weight.shape): layer for layer in linears}.items():
        calls = _products(layer.weight.detach()[: shape[0] // ROWS * ROWS])
        taken = by_turns(calls, options.rounds + 1, torch.device("cpu"), lambda _: None)
        for name, seconds in taken.items():
            times = spread(seconds[1:])
            yield {
                "outputs": shape[0],
                "inputs": shape[1],
                "weights": name,
                "us": round(times.median * 1e6, 1),
                "quartiles_us": [round(x * 1e6, 1) for x in (times.lower_quartile, times.upper_quartile)],
            }
    if options.windows:
        yield from _on_text(model, options)


def _products(weight: Tensor) -> dict[str, Callable[[], object]]:
    """Products of one row with `weight [N,K]`, by kind of weights."""
    x = torch.randn(1, weight.shape[1])
    half, short = x.bfloat16(), weight.bfloat16()
    numbers, scales, _ = Int8Linear(_linear(weight)).parts
    scale = weight.abs().amax(1) / 127
    of_rows = (weight / scale[:, None]).round().to(torch.int8)
    codes, steps = in_4_bits(weight)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu((codes + 8).to(torch.int32), 1)
    pairs = torch.stack([steps.T, torch.zeros_like(steps.T)], -1).bfloat16().contiguous()
    return {
        "float32, BLAS": lambda: nn.functional.linear(x, weight),
        "bfloat16, loops": lambda: few_rows_linear(half, short, None, None),
        "8 bits, loops": lambda: few_rows_linear(half, numbers, scales, None),
        "8 bits, PyTorch": lambda: torch.ops.aten._weight_int8pack_mm(half, of_rows, scale.bfloat16()),
        "4 bits, PyTorch": lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(half, packed, GROUP, pairs),
    }


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def in_4_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes from -8 to 7 of `weight [N,K]`, and the scales `[N,K/32]` of their groups."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = torch.where(largest == 0, torch.ones_like(largest), largest / -8)
    return (groups / scales).round().clamp(-8, 7).flatten(1), scales[..., 0]


def _rounded(model: PreTrainedModel, bits: int, head_bits: int) -> PreTrainedModel:
    """A copy of `model` with its linear layers in 8 or 4 bits; those of 4 are made whole again, with other numbers."""
    copy = deepcopy(model)
    head = copy.get_output_embeddings()
    for parent in list(copy.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            if (head_bits if child is head else bits) == 8:
                setattr(parent, name, Int8Linear(child))
            else:
                codes, scales = in_4_bits(child.weight)
                whole = (codes.unflatten(1, (-1, GROUP)) * scales[..., None]).flatten(1)
                child.weight = nn.Parameter(whole, requires_grad=False)  # the embeddings keep theirs
    return copy


def _on_text(model: PreTrainedModel, options: WeightsOptions) -> Iterator[Row]:
    """Perplexity through memory, and differences in nats a token with 1.96 standard errors over windows."""
    tokenizer = read_tokenizer(options.model)
    documents = [encode(tokenizer, read_text(path)).ids.numpy() for path in options.texts or (book_path(),)]
    windows = perplexity.cut_windows(documents, options.length, options.windows)
    setting = perplexity.Setting(Reading.of(model.config), options.length)
    whole = perplexity.score(model, windows, setting)
    for name, bits, head_bits in (("8 bits", 8, 8), ("4 bits, the head in 8", 4, 8), ("4 bits", 4, 4)):
        found = perplexity.score(_rounded(model, bits, head_bits), windows, setting)
        figures = perplexity.paired(found, whole)
        error = figures["difference_se"]
        yield {
            "weights": name,
            "windows": figures["windows"],
            "length": options.length,
            "perplexity": round(figures["perplexity"], 4),
            "perplexity_of_float32": round(figures["against_perplexity"], 4),
            "difference_nats": round(figures["difference"], 6),
            "difference_interval": None if error is None else round(1.96 * error, 6),
        }
