"""`landmark eval passkey` and `landmark eval perplexity`: passkey retrieval and held-out perplexity of a model."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes

from landmark.cli.options import LONGEST, NumberOptions, load, whole_numbers
from landmark.cli.output import print_table, tokens_read
from landmark.limits import FromOne, MaybeFromOne, OutFile, Range, Seed
from landmark.settings import ReadingChanges

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from landmark.evaluation.passkey import PasskeyPrompts, Sample
    from landmark.evaluation.perplexity import Setting
    from landmark.evaluation.reading import Reading
    from landmark.evaluation.samples import Journal


Attention = Literal["landmark", "full", "local"]


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Which model reads, and how."""

    model: Path | None = None
    """Folder of a converted model with its tokenizer; default: the one in the package."""
    attention: Attention = "landmark"
    """landmark: through memory; local: the last tokens only; full: all at once, at true positions."""
    window: MaybeFromOne = None
    """local: last tokens in sight, on average."""
    reading: OmitArgPrefixes[ReadingChanges] = field(default_factory=ReadingChanges)
    """Default: the model's own settings. With per_head a result is marked as looking ahead."""
    numbers: OmitArgPrefixes[NumberOptions] = field(default_factory=NumberOptions)


@dataclass(frozen=True, kw_only=True)
class PasskeyOptions(EvalOptions):
    """Passkey retrieval: hide random passkeys in a long text at all depths, and count the right answers."""

    lengths: str = "4096,32768"
    """Lengths of the prompts in ordinary tokens, passkey and question included, separated by commas."""
    samples: Annotated[int, Range(1, 10**6)] = 50
    """Prompts per length, with passkeys at evenly spaced depths."""
    haystack: Path | None = None
    """UTF-8 text around the passkey, from varying offsets and repeated as needed; default: the book in the package."""
    seed: Seed = 0
    """Decides passkeys and offsets."""
    out: Annotated[Path | None, OutFile()] = None
    """JSON-lines file of all answers, from which the same command resumes. Answers of other weights, another tokenizer
    or another haystack are refused."""
    json: bool = False
    """Print one JSON object per length instead of a table."""


@dataclass(frozen=True, kw_only=True)
class PerplexityOptions(EvalOptions):
    """Perplexity of windows of held-out text, and paired differences between settings on the same tokens."""

    texts: tuple[str, ...]
    """Texts: files, or the other sources that `landmark train --texts` takes."""
    lengths: str = "2048"
    """Ordinary tokens read from scratch, separated by commas; all divide the longest."""
    windows: MaybeFromOne = None
    """At most so many windows of the longest length, spread evenly over the texts; default: all."""
    against: tuple[str, ...] = ()
    """Settings to compare with, token by token: ATTENTION@LENGTH[,SETTING=VALUE]..., SETTING an option of reading with
    _ for -, e.g. landmark@4096,retrieve=0. What a landmark setting leaves out is as in the one compared; bare
    local@LENGTH sees as many keys."""
    batch_size: FromOne = 4
    """Windows read side by side; changes speed only."""
    json: bool = False
    """Print one JSON object per setting and per comparison instead of tables."""


def run_passkey(options: PasskeyOptions) -> int:
    """Measure passkey retrieval at each length."""
    lengths = whole_numbers("lengths", options.lengths, LONGEST)
    from landmark.assets import book_path
    from landmark.data.text import read_text
    from landmark.evaluation import passkey
    from landmark.hf.tokenizer import encode

    haystack = read_text(options.haystack or book_path())
    made: list[passkey.PasskeyPrompts] = []

    def check(config: "PretrainedConfig") -> None:
        for length in lengths:
            _reading_of(options, config).check_length(config, length + passkey.DIGITS)

    def check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
        made.append(passkey.PasskeyPrompts(tokenizer, encode(tokenizer, haystack).ids, seed=options.seed))
        for length in lengths:
            made[0].check_length(length)

    model, _ = load(options.model, check, numbers=options.numbers, check_tokenizer=check_tokenizer)
    (keys,) = made
    reading = _reading_of(options, model.config)
    journal = _journal(options, model, keys, reading)
    rows = []
    for length in lengths:
        done = {} if journal is None else {i: s for (n, i), s in journal.samples.items() if n == length}
        missing = [index for index in range(options.samples) if index not in done]
        with tokens_read(f"passkeys in {length:,} tokens", length * len(missing)) as progress:
            for sample in passkey.run(model, keys, reading, length, missing, options.samples, progress):
                done[sample.index] = sample
                if journal is not None:
                    journal.add(sample)
        rows.append(passkey.summary(reading, length, [done[index] for index in sorted(done)]))
        if options.json:
            print(json.dumps(rows[-1]), flush=True)
    if not options.json:
        columns = ("length", "accuracy", "samples", "attention", "retrieve", "local_blocks", "tokens_per_s", "seconds")
        print_table(rows, (*columns, "peak_rss_mb", *_marks(rows)))
        for row in rows:
            spread = ", ".join(f"{depth}: {right:.0%}" for depth, right in row["by_depth"].items())
            print(f"{row['length']:,} tokens by depth: {spread}")
    return 0


def _journal(
    options: PasskeyOptions, model: "PreTrainedModel", keys: "PasskeyPrompts", reading: "Reading"
) -> "Journal[Sample] | None":
    """The log of answers, if there is to be one."""
    if options.out is None:
        return None
    from landmark.evaluation.passkey import Sample, contents
    from landmark.evaluation.samples import Journal

    described = contents(model, keys) | {"samples": options.samples, "seed": options.seed}
    described |= {"attention": reading.attention, "block_size": reading.block_size} | asdict(reading.settings)
    del described["allow_nonfinite"]  # changes no answer
    return Journal(options.out, described, Sample)


def run_perplexity(options: PerplexityOptions) -> int:
    """Measure perplexity at each length, then the paired differences asked for."""
    lengths = whole_numbers("lengths", options.lengths, LONGEST)
    from landmark.data.text import read_documents
    from landmark.evaluation import perplexity
    from landmark.evaluation.perplexity import parse_setting
    from landmark.hf.tokenizer import encode

    documents = [document for source in options.texts for document in read_documents(source)]

    def plan(
        config: "PretrainedConfig",
    ) -> "tuple[list[Setting[Reading]], list[tuple[Setting[Reading], Setting[Reading]]], int]":
        """The settings to score, the pairs to compare, and the length of a window."""
        asked = [perplexity.Setting(_reading_of(options, config), length) for length in lengths]
        pairs = [(one, parse_setting(text, config, one)) for one in asked for text in options.against]
        settings = list(dict.fromkeys([*asked, *(other for _, other in pairs)]))
        for setting in settings:
            setting.reading.check_length(config, setting.length)
        return settings, pairs, perplexity.check_lengths([setting.length for setting in settings])

    model, tokenizer = load(options.model, plan, numbers=options.numbers)
    settings, pairs, span = plan(model.config)
    ids = [encode(tokenizer, document.text).ids.numpy() for document in documents]
    windows = perplexity.cut_windows(ids, span, options.windows)

    scored = {}
    rows, comparisons = [], []
    for setting in settings:
        with tokens_read(setting.name, windows.size) as progress:
            scored[setting] = perplexity.score(
                model, windows, setting, batch_size=options.batch_size, progress=progress
            )
        rows.append(scored[setting].figures())
        if options.json:
            print(json.dumps(rows[-1]), flush=True)
    for one, other in pairs:
        comparisons.append(perplexity.paired(scored[one], scored[other]))
        if options.json:
            print(json.dumps(comparisons[-1]), flush=True)
    if not options.json:
        _print_perplexities(rows, comparisons)
    return 0


def _print_perplexities(rows: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> None:
    """Print the figures of each setting, then the differences, if there are any."""
    columns = ("attention", "length", "retrieve", "local_blocks", "chunk_size", "perplexity", "nll", "nll_se", "tokens")
    skipping = ("miss_threshold", "retrievals_skipped") if any("retrievals_skipped" in row for row in rows) else ()
    print_table(rows, (*columns, *skipping, "attended", "seconds", *_marks(rows)))
    if comparisons:
        named = ("setting", "against", "difference", "difference_se", "tokens", "windows")
        print_table(comparisons, (*named, *_marks(comparisons)))


def _reading_of(options: EvalOptions, config: "PretrainedConfig") -> "Reading":
    """The reading that the options describe."""
    from landmark.evaluation.reading import Reading

    return Reading.of(config, options.attention, window=options.window, **options.reading)


def _marks(rows: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """A column for results that look ahead, if there are any."""
    return ("looks_ahead",) if any("looks_ahead" in row for row in rows) else ()
