"""A pretrained model on a laptop: this library beside llama.cpp and beside transformers, on one GGUF file.

Each contender is a process of its own, which keeps its weights and its KV cache. They read the same tokens piece by
piece, and decode, by turns: a machine that slows down for a while slows down all of them. Each round begins with
nothing read, and passes through all lengths.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from os import environ
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.machine import by_turn, processor, spread
from benchmarks.options import LaptopOptions
from landmark.assets import adapter_path, book_path
from landmark.cli.options import whole_numbers
from landmark.data.text import read_text
from landmark.hf.adapter_file import FILE, load_adapter, read_adapter
from landmark.hf.loading import gguf_model, read_tokenizer
from landmark.hf.tokenizer import encode, quiet_transformers
from landmark.limits import LARGEST

ROOT = Path(__file__).parents[1]
LLAMA, MEMORY, NO_MEMORY, FULL = "llama.cpp", "memory", "no memory", "full"
METHODS = (LLAMA, MEMORY, NO_MEMORY, FULL)
INT8 = "int8"  # weights of linear layers; all else is bfloat16
DTYPES = ("float32", "bfloat16", INT8)
FIGURES = ("tokens_per_s", "lowest_tokens_per_s", "highest_tokens_per_s", "last_tokens_per_s")
FIGURES += ("step_s", "lower_quartile_step_s", "upper_quartile_step_s", "rounds", "steps")
PAUSE = 0.25  # seconds before a turn: threads of the contender before spin for a while

Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What a contender of transformers is made of."""

    method: str
    dtype: str
    threads: int
    model: str  # a folder
    ids: str  # a file


class Asked(NamedTuple):
    """What `LaptopOptions` ask for, checked; lengths and numbers of threads rise."""

    options: LaptopOptions
    lengths: list[int]
    threads: list[int]
    kinds: list[tuple[str, str]]  # method and dtype


def check(options: LaptopOptions) -> Asked:
    """Raises ValueError for options that mean nothing, and for an adapter that cannot be used."""
    lengths, threads = (
        sorted(whole_numbers(name, getattr(options, name), most))
        for name, most in (("contexts", LARGEST), ("threads", 512))
    )
    methods, dtypes = _chosen("methods", options.methods, METHODS), _chosen("dtypes", options.dtypes, DTYPES)
    kinds = [(LLAMA, "as the file")] if LLAMA in methods else []
    kinds += [(method, dtype) for method in methods if method != LLAMA for dtype in dtypes if _exists(method, dtype)]
    read_adapter(_adapter_file(options))
    return Asked(options, lengths, threads, kinds)


def _exists(method: str, dtype: str) -> bool:
    """Whether a method computes in a dtype: weights in 8 bits are of converted models."""
    return method != FULL or dtype != INT8


def _chosen(name: str, text: str, known: tuple[str, ...]) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    for one in chosen:
        if one not in known:
            raise ValueError(f"{name} has {one!r}: choose some of {', '.join(known)}, separated by commas")
    return list(dict.fromkeys(chosen))


def _adapter_file(options: LaptopOptions) -> Path:
    adapter = options.adapter or adapter_path()
    return adapter / FILE if adapter.is_dir() else adapter


def tokens_in_all(asked: Asked) -> int:
    """Tokens that all contenders read together."""
    rounds = range(asked.options.rounds)
    longest = (max(_lengths(asked, method, turn), default=0) for method, _ in asked.kinds for turn in rounds)
    return sum(longest) * len(asked.threads)


def _lengths(asked: Asked, method: str, turn: int) -> list[int]:
    """The lengths that a method reads in a round: those beyond the limit in the first alone, and some methods never."""
    short = method in (NO_MEMORY, FULL) or turn > 0
    return [length for length in asked.lengths if length <= asked.options.limit or not short]


def run(asked: Asked, progress: Callable[[int], object]) -> Iterator[Row]:
    """A row for each number of threads, length and contender; `progress` gets the tokens that were read."""
    with tempfile.TemporaryDirectory() as folder:
        files = _files(asked, Path(folder))
        for threads in asked.threads:
            contenders = [_contender(asked, files, method, dtype, threads) for method, dtype in asked.kinds]
            try:
                for contender in contenders:
                    contender.wait()
                for turn in range(asked.options.rounds):
                    _measure(asked, contenders, turn, progress)
            finally:
                for contender in contenders:
                    contender.end()
            for length in asked.lengths:
                for contender in contenders:
                    yield _row(asked, contender, threads, length)


class Files(NamedTuple):
    """What contenders load: the original model, the converted one, and the tokens of the text."""

    plain: Path
    converted: Path
    ids: Path


def _files(asked: Asked, folder: Path) -> Files:
    """Models in folders, which load faster than GGUF files, and tokens for the longest context and the steps there."""
    options, files = asked.options, Files(folder / "plain", folder / "converted", folder / "ids.json")
    quiet_transformers()
    text = read_text(options.text or book_path())
    ids = encode(read_tokenizer(options.model), text).ids.flatten().tolist()
    needed = asked.lengths[-1] + len(asked.lengths) * options.rounds * (options.steps + 1) + 1
    files.ids.write_text(json.dumps((ids * (1 + needed // len(ids)))[:needed]), encoding="utf-8")
    model = gguf_model(options.model, dtype=torch.float32)
    model.save_pretrained(files.plain)
    load_adapter(model, _adapter_file(options)).save_pretrained(files.converted)
    return files


class Contender:
    """A process that reads and decodes when it is asked to; `problem` says why it cannot."""

    def __init__(self, method: str, dtype: str, command: list[str], threads: int, problem: str = "") -> None:
        self.method, self.dtype, self.problem, self.release = method, dtype, problem, ""
        self.pieces: list[tuple[int, float]] = []  # tokens and seconds of what was read since the start
        self.position = 0
        self.speeds: dict[int, list[float]] = defaultdict(list)  # by length: tokens per second from the start on
        self.last_speeds: dict[int, list[float]] = defaultdict(list)  # the same of the last piece
        self.steps: dict[int, list[float]] = defaultdict(list)  # by length: seconds
        self._process: Any = None if problem else _started(command, threads)

    def wait(self) -> None:
        """Waits until it has loaded its model."""
        if self._process is not None:
            self.release = self._answer().get("release", "")

    def start(self) -> None:
        """Forgets what was read."""
        self._ask({"call": "start"})
        self.pieces, self.position = [], 0

    def read_to(self, stop: int) -> None:
        """Prefill of all tokens before `stop`."""
        count = stop - self.position
        seconds = self._ask({"call": "read", "count": count})
        if seconds is not None:
            self.position = stop
            self.pieces.append((count, seconds))

    def note_speed(self, length: int) -> None:
        """Counts what was read up to `length`."""
        if not self.problem:
            tokens, seconds = (sum(column) for column in zip(*self.pieces, strict=True))
            self.speeds[length].append(tokens / seconds)
            self.last_speeds[length].append(self.pieces[-1][0] / self.pieces[-1][1])

    def decode(self, length: int, steps: int) -> None:
        """Steps over `length` tokens and a few more; one warms up and is not counted."""
        taken = self._ask({"call": "decode", "count": steps + 1})
        if taken is not None:
            self.position += steps + 1
            self.steps[length] += taken[1:]

    def end(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _ask(self, call: dict[str, Any]) -> Any:
        """The seconds that a call took, None if the contender cannot do it."""
        if self.problem:
            return None
        time.sleep(PAUSE)
        with suppress(BrokenPipeError):  # it said why before it ended
            print(json.dumps(call), file=self._process.stdin, flush=True)
        return self._answer().get("seconds")

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"its process ended with code {self._process.wait()}"}
        self.problem = answer.get("error", "")
        return answer


def _started(command: list[str], threads: int) -> subprocess.Popen[str]:
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    variables["PYTHONPATH"] = ":".join(sys.path)
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True, cwd=ROOT, env={**environ, **variables}
    )


def _contender(asked: Asked, files: Files, method: str, dtype: str, threads: int) -> Contender:
    if method != LLAMA:
        model = files.plain if method == FULL else files.converted
        setup = Setup(method, dtype, threads, str(model), str(files.ids))
        command = [sys.executable, "-m", "benchmarks.laptop_reader", json.dumps(asdict(setup))]
        return Contender(method, dtype, command, threads)
    node, folder = shutil.which("node"), asked.options.llama
    if node is None:
        return Contender(method, dtype, [], threads, "there is no node on this machine")
    if folder is None:
        return Contender(method, dtype, [], threads, "give --llama, a folder where npm installed node-llama-cpp")
    script = Path(__file__).with_name("llama_reader.mjs")
    arguments = (script, folder.resolve(), asked.options.model.resolve(), files.ids, threads)
    return Contender(method, dtype, [node, *map(str, arguments)], threads)


def _measure(asked: Asked, contenders: list[Contender], turn: int, progress: Callable[[int], object]) -> None:
    """One round: all contenders read to each length, piece by piece, and decode there."""
    options = asked.options
    for contender in contenders:
        contender.start()
    before = 0
    for length in _lengths(asked, MEMORY, turn):
        able = [contender for contender in contenders if length in _lengths(asked, contender.method, turn)]
        pieces = -(-(length - before) // options.piece)
        for piece in range(1, pieces + 1):
            stop = before + (length - before) * piece // pieces
            for contender in by_turn(able, turn + piece):
                contender.read_to(stop)
                progress((length - before) * piece // pieces - (length - before) * (piece - 1) // pieces)
        for contender in able:
            contender.note_speed(length)
        for again in range(options.rounds if length > options.limit else 1):  # as many steps as shorter ones get
            for contender in by_turn(able, turn + again):
                contender.decode(length, options.steps)
        before = length


def _row(asked: Asked, contender: Contender, threads: int, length: int) -> Row:
    row = {
        "bench": "laptop",
        "model": asked.options.model.name,
        "machine": processor(),
        "release": contender.release,
        "threads": threads,
        "context": length,
        "method": contender.method,
        "dtype": contender.dtype,
    }
    steps, speeds = contender.steps[length], contender.speeds[length]
    if contender.problem or not steps:
        reason = contender.problem or f"the context is longer than limit {asked.options.limit}"
        return row | dict.fromkeys(FIGURES) | {"skipped": reason}
    seen = spread(steps)
    figures = (statistics.median(speeds), min(speeds), max(speeds), statistics.median(contender.last_speeds[length]))
    figures += (seen.median, seen.lower_quartile, seen.upper_quartile, len(speeds), len(steps))
    return row | dict(zip(FIGURES, figures, strict=True)) | {"skipped": None}
