"""Read millions of tokens into a context on disk, reopen it, and ask for keys hidden at many depths.

    python benchmarks/long_context.py read DIR --texts books/*.txt --tokens 1000000 [--index hierarchical --recall 0.9]
    python benchmarks/long_context.py ask DIR [--beside SHORTER]
    python benchmarks/long_context.py decode DIR

`read` makes the context DIR of the texts, repeated where they are too few, with pass keys stated at even depths. It
prints a JSON line whenever the number of tokens has grown by half: seconds per 1,000 tokens just before, resident and
disk bytes. Interrupted, the same command goes on. `ask`, a process of its own, opens it and asks for each key. All
keys are stated in the same words, so when one is asked for, the landmarks of the others are hidden; those of all other
blocks are searched. Questions with nothing hidden are asked for their time, in turns with those to another context
where `--beside` names one. `decode` generates with each way of choosing blocks, and prints the bytes that a token had
to read.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import landmark
from landmark.assets import model_path
from landmark.contexts.context import Context
from landmark.data.recall import passkey_question, passkey_statement, random_key
from landmark.data.text import read_text
from landmark.hf.reader import decode_greedily
from landmark.hf.tokenizer import encode, load_tokenizer
from landmark.index.options import IndexOptions
from landmark.index.topk import top_newest
from landmark.memory import LayerMemory
from landmark.process_memory import PeakMemory, resident_bytes

CHARACTERS_PER_TOKEN = 3.4  # to know beforehand how much text is needed; a little more is read than asked for
WINDOW = 8192  # tokens over which speed is measured
DECODED = 50
PLAIN = 9  # questions asked with nothing hidden, for their time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("read", "ask", "decode"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=Path, nargs="+", default=[])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--host-budget", default="256MB")
    parser.add_argument("--index", default="auto")
    parser.add_argument("--recall", type=float, default=1.0)
    parser.add_argument("--retrieve", type=int, help="blocks opened to answer; default: as many as while reading")
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = landmark.from_pretrained(model_path())
    tokenizer = load_tokenizer(model_path(), model)
    memory = {"host_budget": options.host_budget, "index": IndexOptions(options.index, recall=options.recall)}
    {"read": read, "ask": ask, "decode": decode}[options.step](options, model, tokenizer, memory)


def read(options: argparse.Namespace, model: Any, tokenizer: Any, memory: dict[str, Any]) -> None:
    """Make or go on with the context."""
    if options.folder.exists():
        context = Context.open(options.folder, model, tokenizer, write=True, **memory)
    else:
        context = Context.create(options.folder, model, tokenizer, **memory)
    with context:
        if not context.documents:
            context.add(documents(options.texts, options.tokens, options.keys))
        growth = Growth(context)
        context.read(progress=growth.look)
        growth.tell()


class Growth:
    """Prints what the last tokens took, at ever longer intervals."""

    def __init__(self, context: Context) -> None:
        self.context = context
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
            self.tell()
            self.next = int(self.done * 1.5)

    def tell(self) -> None:
        (first, *start), (last, *stop), (_, *began) = self.laps[0], self.laps[-1], self.started
        row = {
            "tokens": self.done,
            "s_per_1000_tokens": (stop[0] - start[0]) * 1000 / max(1, last - first),
            # What others do on the machine makes the clock's time longer, and this one's little.
            "processor_s_per_1000_tokens": (stop[1] - start[1]) * 1000 / max(1, last - first),
            "s": stop[0] - began[0],
            "processor_s": stop[1] - began[1],
            "peak_resident_mb": self.peak.megabytes,
            "resident_mb": resident_bytes() / 1e6,
            "disk_mb": sum(path.stat().st_size for path in self.context.path.rglob("*") if path.is_file()) / 1e6,
        }
        print(json.dumps(row), flush=True)


def documents(paths: list[Path], tokens: int, keys: int) -> list[tuple[str, str]]:
    """The texts in turn until there are enough, with the keys stated at even depths, at ends of lines."""
    texts = [(path.name, read_text(path)) for path in paths]
    rng = np.random.default_rng(0)
    total = int(tokens * CHARACTERS_PER_TOKEN)
    depths = [round(total * (i + 0.5) / keys) for i in range(keys)]
    found, done = [], 0
    while done < total:
        turn, place = divmod(len(found), len(texts))
        name, text = texts[place]
        text = text[: total - done]
        size, parts, cut = len(text), [], 0
        while depths and depths[0] <= done + size:
            here = max(cut, text.rfind("\n", 0, depths.pop(0) - done) + 1)
            parts += [text[cut:here], passkey_statement(random_key(rng))]
            cut = here
        found.append((f"{turn}/{name}", "".join([*parts, text[cut:]])))
        done += size
    return found


def stated_keys(context: Context) -> list[tuple[str, range]]:
    """Every key, with the blocks that state it."""
    before, between, _ = passkey_statement("|").split("|")
    size = context.cache.settings.block_size
    found: list[tuple[str, range]] = []
    for document in context.documents:
        text, place = context.text(document), -1
        while (place := text.find(before, place + 1)) >= 0:
            key = text[place + len(before) :].split(".")[0]
            if not text.startswith(key + between, place + len(before)):
                continue
            tokens = (
                encode(context.tokenizer, text[:place]).ids.numel(),
                len(encode(context.tokenizer, passkey_statement(key))),
            )
            first = document.first_token + tokens[0]
            found.append((key, range(first // size, (first + tokens[1]) // size + 1)))
    return found


def ask(options: argparse.Namespace, model: Any, tokenizer: Any, memory: dict[str, Any]) -> None:
    """Ask for every key, and print each answer and the whole."""
    before, start = resident_bytes(), time.perf_counter()
    if options.retrieve is not None:
        memory["retrieve"] = options.retrieve
    context = Context.open(options.folder, model, tokenizer, **memory)
    opened = time.perf_counter() - start
    asked = [context]
    if options.beside is not None:
        asked.append(Context.open(options.beside, model, tokenizer, **memory))
    plain = np.array([[timed_question(one) for one in asked] for _ in range(PLAIN)])
    # Only now: hidden blocks are found first and left out then, so that many more are searched for.
    keys, peak, right, seconds = stated_keys(context), PeakMemory(), 0, []
    for number, (key, blocks) in enumerate(keys):
        others = [block for other in range(len(keys)) if other != number for block in keys[other][1]]
        shown = hide(context, [block for block in others if block not in blocks])
        start = time.perf_counter()
        said = context.generate(passkey_question(), max_new_tokens=5).text.strip()
        seconds.append(time.perf_counter() - start)
        peak.sample()
        right += said == key
        unhide(context, shown)
        depth = blocks.start * context.cache.settings.block_size / context.tokens_read
        print(json.dumps({"depth": depth, "key": key, "answer": said, "seconds": seconds[-1]}), flush=True)
    row = {
        "tokens": context.tokens_read,
        "right": right,
        "asked": len(keys),
        "open_s": opened,
        "first_ask_s": plain[0, 0],
        "median_ask_s": float(np.median(plain[:, 0])),
        "median_ask_with_hiding_s": float(np.median(seconds)),
        "resident_growth_mb": (peak.bytes - before) / 1e6,
        "peak_resident_mb": peak.megabytes,
    }
    if options.beside is not None:
        row["beside_median_ask_s"] = float(np.median(plain[:, 1]))
        row["times_beside"] = float(np.median(plain[1:, 0] / plain[1:, 1]))  # without what a process makes at first
    print(json.dumps(row))


def timed_question(context: Context) -> float:
    """Seconds that a question takes."""
    start = time.perf_counter()
    context.generate(passkey_question(), max_new_tokens=5)
    return time.perf_counter() - start


class HiddenIndex:
    """An index that does not find some blocks."""

    def __init__(self, inner: Any, hidden: Tensor) -> None:
        self.inner = inner
        self.hidden = hidden

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        scores, numbers = self.inner.search(query, k + len(self.hidden), upto)
        return top_newest(scores.masked_fill(torch.isin(numbers, self.hidden), -torch.inf), numbers, k)

    def resident_keys(self, k: int, upto: list[int]) -> None:
        return None

    def fork(self) -> "HiddenIndex":
        return HiddenIndex(self.inner.fork(), self.hidden)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def hide(context: Context, blocks: list[int]) -> list[Any]:
    """Hides blocks from all layers that search; returns what `unhide` needs."""
    # The first layer always opens the newest.
    memories = [m for m in context.cache.memories if isinstance(m, LayerMemory)][1:]
    indexes = [memory._blocks._index for memory in memories]
    for memory, index in zip(memories, indexes, strict=True):
        memory._blocks._index = HiddenIndex(index, torch.tensor(blocks, dtype=torch.long))
    return list(zip(memories, indexes, strict=True))


def unhide(context: Context, shown: list[Any]) -> None:
    for memory, index in shown:
        memory._blocks._index = index


def decode(options: argparse.Namespace, model: Any, tokenizer: Any, memory: dict[str, Any]) -> None:
    """Count what each decoded token reads, for every way of choosing blocks."""
    for selection in ("per_token_and_head", "per_token", "per_head"):
        with Context.open(options.folder, model, tokenizer, selection=selection, **memory) as context:
            cache = context.cache.fork()
            ids = encode(tokenizer, "\n\nThen he said: ").ids[None]
            with torch.no_grad():
                logits = model(input_ids=ids, past_key_values=cache).logits
                before, start = cache.traffic, time.perf_counter()
                decode_greedily(model, logits[:, -1:].argmax(-1), DECODED, past_key_values=cache)
                seconds = time.perf_counter() - start
            moved = cache.traffic
            stores = [m._blocks._store for m in cache.memories if isinstance(m, LayerMemory)]
            piece = stores[0].shape.piece_bytes
            row = {
                "tokens": context.tokens_read,
                "selection": selection,
                "retrieve": cache.settings.reading.retrieve,
                "blocks_per_token": (moved.requested - before.requested) / DECODED,
                "read_kb_per_token": (moved.requested - before.requested) * piece / DECODED / 1e3,
                "from_disk_kb_per_token": (moved.file_bytes - before.file_bytes) / DECODED / 1e3,
                "all_kb": sum(store.nbytes for store in stores) / 1e3,
                "ms_per_token": seconds * 1000 / DECODED,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
