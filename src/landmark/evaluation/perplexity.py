"""Perplexity of texts in windows, and paired differences between two settings on the same tokens."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from landmark.evaluation.reading import Reading, TextReading, local_like
from landmark.hf.compat import rename_cache_argument
from landmark.hf.reader import chunks
from landmark.memory import Retrievals
from landmark.settings import ReadingChanges, ReadingSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


Read = TypeVar("Read", bound=TextReading, covariant=True)


@dataclass(frozen=True)
class Setting(Generic[Read]):
    """A reading of windows of `length` ordinary tokens, each from scratch."""

    reading: Read
    length: int

    @property
    def name(self) -> str:
        reading = self.reading
        if reading.attention == "full":
            return f"full@{self.length}"
        settings, usual = reading.settings, ReadingSettings()
        always = ("retrieve", "local_blocks", "chunk_size")
        others = [item.name for item in fields(settings) if getattr(settings, item.name) != getattr(usual, item.name)]
        named = dict.fromkeys([*always, *others])
        return f"{reading.attention}@{self.length}," + ",".join(f"{n}={getattr(settings, n)}" for n in named)


@dataclass(frozen=True)
class Scored:
    """Negative log-likelihoods in nats, `nll [windows, span]`; NaN where a token was no target.

    `skipped` is the share of retrievals skipped by a `miss_threshold`, None without one.
    """

    setting: Setting[TextReading]
    nll: np.ndarray
    seconds: float
    skipped: float | None = None

    def figures(self) -> dict[str, Any]:
        """The figures of one setting."""
        mean, error = mean_and_error(self.nll)
        reading, settings = self.setting.reading, self.setting.reading.settings
        figures = {
            "attention": reading.attention,
            "length": self.setting.length,
            **asdict(settings),
            "perplexity": math.exp(mean),
            "nll": mean,
            "nll_se": error,
            "tokens": int(np.isfinite(self.nll).sum()),
            "windows": len(self.nll),
            "attended": reading.attended(self.setting.length),
            "seconds": self.seconds,
        }
        if self.skipped is not None:
            figures["retrievals_skipped"] = self.skipped
        if reading.looks_ahead:
            figures["looks_ahead"] = True
        return figures


def cut_windows(documents: Sequence[np.ndarray], span: int, limit: int | None) -> np.ndarray:
    """Consecutive windows `[W, span]` of each document's ids, or `limit` of them spread evenly over all.

    The rest of a document is dropped. Raises ValueError if no document fills a window.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"windows is {limit}: give 1 or more")
    whole = [ids[: len(ids) // span * span].reshape(-1, span) for ids in documents]
    windows = np.concatenate(whole) if whole else np.empty((0, span), np.int64)
    if len(windows) == 0:
        longest = max((len(ids) for ids in documents), default=0)
        raise ValueError(f"no text fills a window of {span} tokens, the longest has {longest}: choose shorter lengths")
    if limit is not None and limit < len(windows):
        windows = windows[np.arange(limit) * len(windows) // limit]
    return windows


def check_lengths(lengths: Sequence[int]) -> int:
    """The longest of `lengths`; raises ValueError unless the others divide it, so that all share its windows."""
    short = [length for length in lengths if length < 2]
    if short:
        raise ValueError(f"length {short[0]} leaves no next token to predict: give 2 or more")
    span = max(lengths)
    for length in lengths:
        if span % length:
            raise ValueError(
                f"windows of {span} tokens cannot be cut into pieces of {length}:"
                f" choose lengths that divide the longest, e.g. {span // length * length} for it"
            )
    return span


def score(
    model: "PreTrainedModel",
    windows: np.ndarray,
    setting: Setting[TextReading],
    *,
    batch_size: int = 1,
    progress: Callable[[int], Any] | None = None,
) -> Scored:
    """Scores every next token of `windows [W, span]`, cut into pieces of `setting.length`, each read from scratch.

    The first token of each piece is no target. `progress` is called with the number of tokens read.
    """
    started = time.perf_counter()
    pieces = torch.from_numpy(windows.astype(np.int64)).view(-1, setting.length)
    scored, retrievals = [], Retrievals()
    for piece in pieces.split(batch_size):
        options = setting.reading.start(model.config)
        scored.append(token_nll(model, piece, setting.reading, progress, options))
        if "past_key_values" in options:
            retrievals += options["past_key_values"].retrievals
    nll = torch.cat(scored).view(len(windows), -1).numpy()
    skipped = retrievals.miss_rate if setting.reading.settings.miss_threshold else None
    return Scored(setting, nll, time.perf_counter() - started, skipped)


@torch.inference_mode()
def token_nll(
    model: "PreTrainedModel",
    ids: Tensor,
    reading: TextReading,
    progress: Callable[[int], Any] | None = None,
    options: dict[str, Any] | None = None,
) -> Tensor:
    """Negative log-likelihood of each of `ids [B, N]` given those before it, float64; NaN for the first.

    `options` are the keyword arguments of `TextReading.start`, made here if None.
    """
    nll = torch.full(ids.shape, math.nan, dtype=torch.float64)
    length = ids.shape[1]
    options = rename_cache_argument(model, reading.start(model.config) if options is None else options)
    stop = 0
    for chunk in chunks(ids, reading.chunk_size or length):
        start, stop = stop, stop + chunk.shape[1]
        logits = model(input_ids=chunk.to(model.device), **options).logits
        # The last token of the text has no target.
        targets = ids[:, start + 1 : stop + 1].to(logits.device)
        logits = logits[:, : targets.shape[1]].float()
        likelihood = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        nll[:, start + 1 : start + 1 + targets.shape[1]] = -likelihood.double().cpu()
        if progress is not None:
            progress(len(ids) * (stop - start))
    return nll


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """Mean of the finite `values [W, span]`, and its standard error, clustered by window.

    Tokens of a window are correlated, windows nearly independent; every window has equally many finite values. The
    error is None for a single window.
    """
    finite = np.isfinite(values)
    assert (finite.sum(1) == finite[0].sum()).all(), "windows are all cut the same way"
    means = np.nanmean(values, axis=1)
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return float(means.mean()), error


def paired(one: Scored, other: Scored) -> dict[str, Any]:
    """The paired difference `one - other` in nats per token, over the tokens that both predict."""
    difference = one.nll - other.nll
    mean, error = mean_and_error(difference)
    both = np.isfinite(difference)
    figures = {
        "setting": one.setting.name,
        "against": other.setting.name,
        "difference": mean,
        "difference_se": error,
        "perplexity": math.exp(float(one.nll[both].mean())),
        "against_perplexity": math.exp(float(other.nll[both].mean())),
        "attended": one.setting.reading.attended(one.setting.length),
        "against_attended": other.setting.reading.attended(other.setting.length),
        "tokens": int(both.sum()),
        "windows": len(difference),
    }
    ahead = any(scored.setting.reading.looks_ahead for scored in (one, other))
    return figures | {"looks_ahead": True} if ahead else figures


def _form(hint: Any) -> tuple[str, Callable[[str], Any]]:
    """The pattern and the parser of a value of this type."""
    if get_origin(hint) is Literal:
        return r"\w+", str
    if hint is bool:
        return "True|False", "True".__eq__
    return (r"\d*\.?\d+", float) if hint is float else (r"\d+", int)


# Pattern and parser of each option of a setting.
OPTIONS = {name: _form(hint) for name, hint in get_type_hints(ReadingChanges).items()} | {"window": _form(int)}

FORM = (
    f"ATTENTION@LENGTH[,SETTING=VALUE]..., where SETTING is {', '.join(OPTIONS)} (of local attention), e.g."
    " landmark@4096,retrieve=0"
)


def parse_setting(text: str, config: "PretrainedConfig", compared: Setting[Reading]) -> Setting[Reading]:
    """Parses a setting to compare with `compared`, on a converted model with this `config`.

    A landmark setting inherits what it leaves out from `compared`, if that reads through memory too. A local setting
    without options attends to at least as many keys per token as `compared`. Raises ValueError for anything else.
    """
    head, *parts = text.split(",")
    attention, at, length_text = head.partition("@")
    given = [(name, value) for name, _, value in (part.partition("=") for part in parts)]
    once = len({name for name, _ in given}) == len(given)
    understood = once and all(name in OPTIONS and re.fullmatch(OPTIONS[name][0], value) for name, value in given)
    if not at or not length_text.isdecimal() or not understood:
        raise ValueError(f"{text!r} is no setting to compare with: write {FORM}")
    length, options = int(length_text), {name: OPTIONS[name][1](value) for name, value in given}
    reading = compared.reading
    if attention == "local" and not options:
        return Setting(local_like(config, reading, length), length)
    if attention == "landmark" and reading.attention == "landmark":
        options = asdict(reading.settings) | options
    return Setting(Reading.of(config, attention, **options), length)
