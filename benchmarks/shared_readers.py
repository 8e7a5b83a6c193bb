"""Memory of processes that read one context: how much each holds of its own, and how much they share."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.options import TierReadersOptions
from landmark.contexts.manifest import KEYS

QUESTION = "What is the pass key? The pass key is "
Row = dict[str, Any]


def run(options: TierReadersOptions) -> Iterator[Row]:
    """A row for one reader and for all of them, with the key file mapped, and without it; Linux only."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = options.context or _read(options, Path(folder) / "context")
        without = Path(folder) / "without"
        shutil.copytree(path, without, ignore=shutil.ignore_patterns(KEYS), copy_function=_linked)
        for keys, place in (("mapped", path), ("private", without)):
            for readers in sorted({1, options.readers}):
                yield {"keys": keys, "readers": readers, **_measured(options, place, readers)}


def _read(options: TierReadersOptions, path: Path) -> Path:
    """A context of the package's book, again and again until there are about as many tokens as asked for."""
    from benchmarks.models import model_and_tokenizer
    from landmark import Context
    from landmark.assets import book_path
    from landmark.data.text import read_text
    from landmark.hf.tokenizer import encode

    model, tokenizer = model_and_tokenizer(options.model)
    text = read_text(book_path())
    sample = text[:10_000]
    characters = options.tokens * len(sample) // encode(tokenizer, sample).ids.numel()
    with Context.create(path, model, tokenizer) as context:
        context.append((text * (1 + characters // len(text)))[:characters], "book")
    return path


def _linked(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target


def _measured(options: TierReadersOptions, path: Path, readers: int) -> Row:
    """Medians over the processes in MB, while all of them have the context open and have asked."""
    spawn, ends, processes = get_context("spawn"), [], []
    for _ in range(readers):
        mine, theirs = spawn.Pipe()
        arguments = (theirs, path, options.model, options.host_budget)
        processes.append(spawn.Process(target=_reader, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()  # so that a reader that fails is an EOFError here
        ends.append(mine)
        mine.recv()
    before = [_rollup(process.pid) for process in processes]
    seconds = []
    for end in ends:
        end.send("open and ask")
        seconds.append(end.recv())
    after = [_rollup(process.pid) for process in processes]
    for end, process in zip(ends, processes, strict=True):
        end.send("end")
        process.join()
    return {
        "pss_mb_before_opening": statistics.median(one["Pss"] for one in before),
        "pss_mb": statistics.median(one["Pss"] for one in after),
        "pss_mb_of_all": sum(one["Pss"] for one in after),
        "own_mb": statistics.median(one["Private_Clean"] + one["Private_Dirty"] for one in after),
        "own_mb_written": statistics.median(
            late["Private_Dirty"] - early["Private_Dirty"] for early, late in zip(before, after, strict=True)
        ),
        "open_processor_s": statistics.median(opened for opened, _ in seconds),
        "ask_processor_s": statistics.median(asked for _, asked in seconds),
    }


def _reader(end: Connection, path: Path, model_folder: Path | None, host_budget: str) -> None:
    """A process that opens the context when it is asked to, asks twice, and waits."""
    import torch

    from benchmarks.models import model_and_tokenizer
    from landmark import Context

    torch.set_num_threads(1)
    model, tokenizer = model_and_tokenizer(model_folder)
    end.send("ready")
    end.recv()
    laps = [time.process_time()]
    context = Context.open(path, model, tokenizer, host_budget=host_budget)
    laps.append(time.process_time())
    context.generate(QUESTION, max_new_tokens=5)  # the first one loads compiled loops
    laps.append(time.process_time())
    context.generate(QUESTION, max_new_tokens=5)
    laps.append(time.process_time())
    end.send((laps[1] - laps[0], laps[3] - laps[2]))
    end.recv()


def _rollup(process: int | None) -> dict[str, float]:
    """Memory of a process in MB, by the names of /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}
