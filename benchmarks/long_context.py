"""Contexts of millions of tokens on disk: read them, ask for passkeys at many depths, decode, and time what grows."""

import time
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import landmark
from benchmarks.machine import by_turn
from benchmarks.models import model_and_text, model_and_tokenizer
from benchmarks.options import ContextOptions, GrowthOptions, LongAskOptions, LongDecodeOptions, LongReadOptions
from landmark.cli.options import whole_numbers
from landmark.contexts.context import Context
from landmark.data.recall import passkey_question, passkey_statement, random_key
from landmark.data.text import read_text
from landmark.hf import plain
from landmark.hf.tokenizer import encode
from landmark.index.base import Index
from landmark.index.delegating import Delegating
from landmark.index.options import IndexOptions
from landmark.index.topk import top_newest
from landmark.memory import LayerMemory
from landmark.memory.blocks import BlockMemory
from landmark.process_memory import PeakMemory, resident_bytes
from landmark.settings import Selection
from landmark.store.base import BlockShape

CHARACTERS_PER_TOKEN = 3.4  # to know beforehand how much text is needed; a little more is read than asked for
WINDOW = 8192  # tokens over which speed is measured
UNMASKED_QUESTIONS = 9  # asked for their latency, with nothing masked
TURN = 2046  # tokens, whole chunks of the package's model
HOST_BUDGET = "256MB"  # of both caches that are compared over a context
Row = dict[str, Any]


# Read.


def read(options: LongReadOptions, emit: Callable[[Row], object]) -> None:
    """Makes or resumes the context; `emit` gets rows while it is read."""
    if not options.context.exists() and not options.texts:
        raise ValueError("there is nothing to read: name texts with --texts")
    texts = [(path.name, read_text(path)) for path in options.texts]
    model, tokenizer = model_and_tokenizer(options.model)
    memory: dict[str, Any] = {**_memory(options), "kv_dtype": options.kv_dtype}
    if options.context.exists():
        context = Context.open(options.context, model, tokenizer, write=True, **memory)
    else:
        context = Context.create(options.context, model, tokenizer, **memory)
    with context:
        if not context.documents:
            context.add(_documents(texts, options))
        growth = _Growth(context, emit)
        context.read(progress=growth.look)
        growth.emit_row()


def _memory(options: ContextOptions) -> dict[str, Any]:
    """Keywords of `Context`."""
    return {"host_budget": options.host_budget, "index": IndexOptions(options.index, recall=options.recall)}


class _Growth:
    """Emits what the last tokens took, at ever longer intervals."""

    def __init__(self, context: Context, emit: Callable[[Row], object]) -> None:
        self.context = context
        self.emit = emit
        self.peak = PeakMemory()
        self.done = context.tokens_read
        self.next = max(16_384, int(self.done * 1.5))
        self.laps = [(self.done, time.perf_counter(), time.process_time())]
        self.started = self.laps[0]

    def look(self, tokens: int) -> None:
        self.peak.sample()
        self.done += tokens
        self.laps.append((self.done, time.perf_counter(), time.process_time()))
        while self.laps[1][0] < self.done - WINDOW:
            self.laps.pop(0)
        if self.done >= self.next:
            self.emit_row()
            self.next = int(self.done * 1.5)

    def emit_row(self) -> None:
        (first, *start), (last, *stop), (_, *began) = self.laps[0], self.laps[-1], self.started
        row = {
            "tokens": self.done,
            "s_per_1000_tokens": (stop[0] - start[0]) * 1000 / max(1, last - first),
            # Other programs on the machine lengthen wall time, and processor time hardly.
            "processor_s_per_1000_tokens": (stop[1] - start[1]) * 1000 / max(1, last - first),
            "s": stop[0] - began[0],
            "processor_s": stop[1] - began[1],
            "peak_resident_mb": self.peak.megabytes,
            "resident_mb": resident_bytes() / 1e6,
            "disk_mb": sum(path.stat().st_size for path in self.context.path.rglob("*") if path.is_file()) / 1e6,
        }
        self.emit(row)


def _documents(texts: list[tuple[str, str]], options: LongReadOptions) -> list[tuple[str, str]]:
    """The texts in turn until there are enough, with passkeys stated at even depths, at ends of lines."""
    rng = np.random.default_rng(options.seed)
    total = int(options.tokens * CHARACTERS_PER_TOKEN)
    depths = [round(total * (i + 0.5) / options.passkeys) for i in range(options.passkeys)]
    found, done = [], 0
    while done < total:
        turn, number = divmod(len(found), len(texts))
        name, text = texts[number]
        text = text[: total - done]
        size, parts, cut = len(text), [], 0
        while depths and depths[0] <= done + size:
            here = max(cut, text.rfind("\n", 0, depths.pop(0) - done) + 1)
            parts += [text[cut:here], passkey_statement(random_key(rng))]
            cut = here
        found.append((f"{turn}/{name}", "".join([*parts, text[cut:]])))
        done += size
    return found


def stated_passkeys(context: Context) -> list[tuple[str, range]]:
    """Every passkey, with the blocks that state it."""
    before, between, _ = passkey_statement("|").split("|")
    size = context.cache.settings.block_size
    found: list[tuple[str, range]] = []
    for document in context.documents:
        text, start = context.text(document), -1
        while (start := text.find(before, start + 1)) >= 0:
            key = text[start + len(before) :].split(".")[0]
            if not text.startswith(key + between, start + len(before)):
                continue
            tokens = (
                encode(context.tokenizer, text[:start]).ids.numel(),
                len(encode(context.tokenizer, passkey_statement(key))),
            )
            first = document.first_token + tokens[0]
            found.append((key, range(first // size, (first + tokens[1]) // size + 1)))
    return found


# Ask.


def ask(options: LongAskOptions) -> Iterator[Row]:
    """A row per passkey, and one of all."""
    memory = _memory(options)
    if options.retrieve is not None:
        memory["retrieve"] = options.retrieve
    model, tokenizer = model_and_tokenizer(options.model)
    before, start = resident_bytes(), time.perf_counter()
    context = Context.open(options.context, model, tokenizer, **memory)
    opened = time.perf_counter() - start
    contexts = [context]
    if options.baseline is not None:
        contexts.append(Context.open(options.baseline, model, tokenizer, **memory))
    unmasked = np.array([[_question_seconds(one) for one in contexts] for _ in range(UNMASKED_QUESTIONS)])
    # Only now: masked blocks are found first and left out then, so that many more are searched for.
    keys, peak, right, seconds = stated_passkeys(context), PeakMemory(), 0, []
    for number, (key, blocks) in enumerate(keys):
        others = [block for other in range(len(keys)) if other != number for block in keys[other][1]]
        indexes = mask(context, [block for block in others if block not in blocks])
        start = time.perf_counter()
        answer = context.generate(passkey_question(), max_new_tokens=5).text.strip()
        seconds.append(time.perf_counter() - start)
        peak.sample()
        right += answer == key
        unmask(indexes)
        depth = blocks.start * context.cache.settings.block_size / context.tokens_read
        yield {"depth": depth, "passkey": key, "answer": answer, "seconds": seconds[-1]}
    row = {
        "tokens": context.tokens_read,
        "right": right,
        "asked": len(keys),
        "open_s": opened,
        "first_ask_s": unmasked[0, 0],
        "median_ask_s": float(np.median(unmasked[:, 0])),
        "median_ask_with_masking_s": float(np.median(seconds)),
        "resident_growth_mb": (peak.bytes - before) / 1e6,
        "peak_resident_mb": peak.megabytes,
    }
    if options.baseline is not None:
        row["baseline_median_ask_s"] = float(np.median(unmasked[:, 1]))
        row["ratio"] = float(np.median(unmasked[1:, 0] / unmasked[1:, 1]))  # the first question warms up
    yield row


def _question_seconds(context: Context) -> float:
    """Latency of one question."""
    start = time.perf_counter()
    context.generate(passkey_question(), max_new_tokens=5)
    return time.perf_counter() - start


class MaskedIndex(Delegating):
    """An index that does not find the `masked` blocks."""

    def __init__(self, inner: Index, masked: Tensor) -> None:
        self.inner = inner
        self.masked = masked

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        scores, numbers = self.inner.search(query, k + len(self.masked), upto)
        return top_newest(scores.masked_fill(torch.isin(numbers, self.masked), -torch.inf), numbers, k)

    def resident_keys(self, k: int, upto: list[int]) -> None:
        return None

    def fork(self) -> "MaskedIndex":
        return MaskedIndex(self.inner.fork(), self.masked)


def mask(context: Context, blocks: list[int]) -> list[tuple[BlockMemory, Index]]:
    """Masks blocks in all layers that search; returns the indexes, for `unmask`."""
    masked, indexes = torch.tensor(blocks, dtype=torch.long), []
    for memory in _block_memories(context.cache)[1:]:  # the first layer always opens the newest
        indexes.append((memory, memory._index))
        memory._index = MaskedIndex(memory._index, masked)  # pyright: ignore[reportAttributeAccessIssue]
    return indexes


def unmask(indexes: list[tuple[BlockMemory, Index]]) -> None:
    for memory, index in indexes:
        memory._index = index


def _block_memories(cache: landmark.LandmarkCache) -> list[BlockMemory]:
    """Blocks in memory of every landmark layer."""
    blocks = [memory._blocks for memory in cache.memories if isinstance(memory, LayerMemory)]
    return [block_memory for block_memory in blocks if block_memory is not None]


# Decode.


def decode(options: LongDecodeOptions) -> Iterator[Row]:
    """One row per selection: the bytes that each decoded token reads."""
    model, tokenizer = model_and_tokenizer(options.model)
    for selection in get_args(Selection):
        with Context.open(options.context, model, tokenizer, selection=selection, **_memory(options)) as context:
            cache = context.cache.fork()
            ids = encode(tokenizer, "\n\nThen he said: ").ids[None]
            with torch.no_grad():
                logits = model(input_ids=ids, past_key_values=cache).logits
                before, start = cache.traffic, time.perf_counter()
                first = logits[0, -1:].argmax(-1)
                plain.decode(model, first, options.new_tokens, ends=(), past_key_values=cache)
                seconds = time.perf_counter() - start
            moved, tokens = cache.traffic, options.new_tokens
            requested = (moved.requested - before.requested) / tokens
            stores = [memory._store for memory in _block_memories(cache)]
            shape: BlockShape = stores[0].shape  # pyright: ignore[reportAttributeAccessIssue]
            yield {
                "tokens": context.tokens_read,
                "selection": selection,
                "retrieve": cache.settings.reading.retrieve,
                "blocks_per_token": requested,
                "read_kb_per_token": requested * shape.piece_bytes / 1e3,
                "from_disk_kb_per_token": (moved.file_bytes - before.file_bytes) / tokens / 1e3,
                "all_kb": sum(store.nbytes for store in stores) / 1e3,
                "ms_per_token": seconds * 1000 / tokens,
            }


# Growth.


@torch.no_grad()
def growth(options: GrowthOptions) -> Iterator[Row]:
    """One row per length but the shortest: seconds per 1,000 tokens after both, by turns."""
    shortest, *lengths = sorted(whole_numbers("lengths", options.lengths))
    model, tokenizer, ids = model_and_text(options)
    memory: dict[str, Any] = {"index": IndexOptions(options.index, recall=options.recall)}
    if options.context is not None:
        memory["host_budget"] = HOST_BUDGET
        context = Context.open(options.context, model, tokenizer, **memory)
        long, done, lengths = context.cache, context.tokens_read, [context.tokens_read]
        _advance(model, ids, long, 0, TURN)  # warms up
    else:
        long, done = landmark.LandmarkCache(model.config, **memory), 0
    for length in lengths:
        done = _advance(model, ids, long, done, length)
        rounds = []
        for turn in range(options.rounds):
            short = landmark.LandmarkCache(model.config, **memory)
            _advance(model, ids, short, 0, shortest)
            took = {id(cache): _turn_seconds(model, ids, cache, shortest) for cache in by_turn((long, short), turn)}
            rounds.append((took[id(short)], took[id(long)]))
        yield {"tokens": length, "shortest": shortest, **_summary(np.array(rounds))}


def _turn_seconds(
    model: PreTrainedModel, ids: torch.Tensor, cache: landmark.LandmarkCache, start: int
) -> tuple[float, float]:
    """Seconds per 1,000 tokens of a turn of reading: wall time and processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    _advance(model, ids, cache, start, start + TURN)
    return (time.perf_counter() - wall) * 1000 / TURN, (time.process_time() - processor) * 1000 / TURN


def _summary(rounds: np.ndarray) -> Row:
    """Medians of rounds `[n,short and long,wall and processor]`, and the ratio of processor times."""
    low, ratio, high = np.quantile(rounds[:, 1, 1] / rounds[:, 0, 1], (0.25, 0.5, 0.75)).tolist()
    row: Row = {}
    for name, (wall, processor) in zip(("short", "long"), np.median(rounds, axis=0).tolist(), strict=True):
        row |= {f"{name}_s_per_1000_tokens": wall, f"{name}_processor_s_per_1000_tokens": processor}
    quartiles = {"lower_quartile": low, "upper_quartile": high}
    return row | {"ratio": ratio, **quartiles, "resident_mb": resident_bytes() / 1e6}


def _advance(model: PreTrainedModel, ids: torch.Tensor, cache: landmark.LandmarkCache, done: int, stop: int) -> int:
    """Reads the repeated text from token `done` to `stop`."""
    while done < stop:
        part = ids[done % len(ids) :][: min(stop - done, 65536)]
        landmark.read(model, part, cache)
        done += len(part)
    return done
