"""What a conversion loses on text: perplexity and divergence, in a window and through memory, beside the original.

All readings score the same tokens of the same windows, so that their differences are paired. The divergence is that of
next-token distributions, KL(original || reading), in nats a token.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from landmark.cli.options import whole_numbers
from landmark.cli.output import print_table, tokens_read
from landmark.data.text import read_text
from landmark.evaluation.perplexity import Setting, cut_windows, mean_and_error, parse_setting
from landmark.evaluation.reading import Reading
from landmark.evaluation.samples import digest
from landmark.hf.adapter_file import adapted_config
from landmark.hf.compat import cache_kwargs
from landmark.hf.tokenizer import encode
from reproduce.studies.options import PerplexityOptions
from reproduce.studies.records import Records
from reproduce.studies.smollm2_models import Pair, adapter_of
from reproduce.tables.intervals import over_seeds

ROWS = 256  # positions whose logits are computed at a time: with a vocabulary of 49,152, 48 MiB a model
LONGEST = 10**6  # tokens of a window
COLUMNS = ("length", "reading", "perplexity", "ratio", "ratio_low", "ratio_high", "divergence", "divergence_se")
COUNTS = ("windows", "tokens", "tokens_per_s")


class Window(NamedTuple):
    """Window `number` of a text: `ids [T]`."""

    text: str
    number: int
    ids: Tensor


def run(options: PerplexityOptions) -> int:
    """Measures window after window, and prints a row for each length and reading."""
    lengths = whole_numbers("lengths", options.lengths, LONGEST)
    texts = {path.stem: read_text(path) for path in options.texts}
    if len(texts) < len(options.texts):
        raise ValueError(f"two of the texts have one name ({', '.join(map(str, options.texts))}): rename one")
    named = readings_of(adapted_config(options.original, adapter_of(options)), options.readings, max(lengths))
    pair = Pair.load(options)
    documents = {name: encode(pair.tokenizer, text).ids for name, text in texts.items()}
    settings = pair.settings() | {"texts": digest(texts), "windows": options.windows, "readings": list(named)}
    records = Records(options.out, settings)
    rows = []
    for length in lengths:
        windows = windows_of(documents, length, options.windows)
        until = math.inf if options.seconds is None else time.monotonic() + options.seconds
        measured = measure_windows(pair, named, windows, records, until)
        rows += figures(length, measured)
    if options.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        print_table(rows, (*COLUMNS, *COUNTS))
    return 0


def readings_of(config: PretrainedConfig, texts: Iterable[str], length: int) -> dict[str, Reading]:
    """Readings as options name them, ATTENTION[,SETTING=VALUE]...: `full` is over the window, `landmark` by memory.

    Raises ValueError for what is no reading, or does not fit the trained range.
    """
    usual = Setting(Reading.of(config), length)
    found = {}
    for text in texts:
        attention, comma, changes = text.partition(",")
        found[text] = parse_setting(f"{attention}@{length}{comma}{changes}", config, usual).reading
        found[text].check_length(config, length)
    return found


def windows_of(documents: dict[str, Tensor], length: int, count: int) -> list[Window]:
    """`count` windows of each text, spread evenly over it; first one of each text, so that an early end has all."""
    cut = {name: cut_windows([ids.numpy()], length, count) for name, ids in documents.items()}
    return [
        Window(name, number, torch.from_numpy(windows[number]))
        for number in range(count)
        for name, windows in cut.items()
        if number < len(windows)
    ]


def measure_windows(
    pair: Pair, readings: dict[str, Reading], windows: Sequence[Window], records: Records, until: float
) -> list[dict[str, Any]]:
    """The records of `windows`; those that `records` lack are measured, until the monotonic time `until`."""
    keys = {f"{len(window.ids)} {window.text} {window.number}": window for window in windows}
    missing = {key: window for key, window in keys.items() if key not in records}
    total = (1 + len(readings)) * sum(len(window.ids) for window in missing.values())
    with tokens_read(f"{len(missing)} windows", total) as progress:
        for key, window in missing.items():
            if time.monotonic() > until:
                break
            records.add(key, compared(pair, readings, window.ids, progress))
    return [records.by_key[key] for key in keys if key in records]


@torch.inference_mode()
def compared(
    pair: Pair, readings: dict[str, Reading], ids: Tensor, progress: Callable[[int], object] = lambda tokens: None
) -> dict[str, dict[str, float]]:
    """Means over the next tokens of `ids [T]`: `nll` and `divergence` of each reading, and its `seconds`."""
    nll, divergence, seconds = {}, {}, {}

    def scored(name: str, model: PreTrainedModel, reading: Reading | None) -> Tensor:
        began = time.perf_counter()
        found = states(model, reading, ids)
        seconds[name] = time.perf_counter() - began
        progress(len(ids))
        return found

    wanted = scored("original", pair.original, None)
    for name, reading in readings.items():
        sums = _sums(pair, wanted, scored(name, pair.converted, reading), ids)
        nll["original"], nll[name], divergence[name] = (total / (len(ids) - 1) for total in sums)
    return {"nll": nll, "divergence": divergence, "seconds": seconds}


def states(model: PreTrainedModel, reading: Reading | None, ids: Tensor) -> Tensor:
    """What the head gets at each of `ids [T]`, `[T, C]`; with `reading` None by the model's own full attention."""
    cache = None if reading is None else reading.cache(model.config)
    base: Any = model.base_model
    return base(input_ids=ids[None].to(model.device), **cache_kwargs(base, cache)).last_hidden_state[0]


def _sums(pair: Pair, wanted: Tensor, found: Tensor, ids: Tensor) -> tuple[float, float, float]:
    """Sums over next tokens: negative log-likelihoods of both models, and the divergence between them."""
    heads: Any = pair.original.get_output_embeddings(), pair.converted.get_output_embeddings()
    sums = torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(ids) - 1, ROWS):
        stop = min(start + ROWS, len(ids) - 1)
        p, q = (head(x[start:stop]).float().log_softmax(-1) for head, x in zip(heads, (wanted, found), strict=True))
        targets = ids[start + 1 : stop + 1, None].to(p.device)
        parts = (-p.gather(1, targets).sum(), -q.gather(1, targets).sum(), kl(p, q).sum())
        sums += torch.stack(parts).double().cpu()
    first, second, divergence = sums.tolist()
    return first, second, divergence


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of rows of log-probabilities `p, q [N, V]`, in nats, `[N]`."""
    return (p.exp() * (p - q)).sum(-1)


def figures(length: int, measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for the original and for each reading over all windows measured.

    `ratio` is that of the perplexities, with the 95 % interval of Student's distribution for the mean of the paired
    differences of windows in nats, `difference` with its standard error.
    """
    if not measured:
        return []
    rows = []
    for name in measured[0]["nll"]:
        nll, usual = (np.array([[record["nll"][key]] for record in measured]) for key in (name, "original"))
        mean, error = mean_and_error(nll - usual)
        ratio = over_seeds([mean], error, len(measured)).map(math.exp)
        seconds = sum(record["seconds"][name] for record in measured)
        row = {"length": length, "reading": name, "perplexity": math.exp(float(nll.mean()))}
        row |= {"windows": len(measured), "tokens": len(measured) * (length - 1)}
        row |= {"tokens_per_s": round(len(measured) * length / seconds)}
        if name != "original":
            row |= {"ratio": ratio.value}
            row |= {"ratio_low": ratio.low, "ratio_high": ratio.high} if ratio.known else {}
            row |= {"difference": mean, "difference_se": error}
            divergence = np.array([[record["divergence"][name]] for record in measured])
            row |= dict(zip(("divergence", "divergence_se"), mean_and_error(divergence), strict=True))
        rows.append(row)
    return rows
