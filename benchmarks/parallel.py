"""Parallel training: one training in one, two and four processes, resumed across them, and after a process is lost."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

# The trials are those of the tests, which train a few steps.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))

from processes import WAYS, finish, kill_after, measures, resumable, start
from processes import options as train_arguments

from benchmarks.options import ParallelOptions
from landmark.assets import book_path
from landmark.data.tokenizer import train_tokenizer

CONFIG = {"model_type": "llama", "vocab_size": 300, "intermediate_size": 96, "num_hidden_layers": 2}
CONFIG |= {"max_position_embeddings": 256, "tie_word_embeddings": True}
Row = dict[str, object]


def run(options: ParallelOptions) -> Iterator[Row]:
    """One row per training."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        trials = _Trials(Path(folder), options.steps, options.learning_rate)
        yield from trials.train(1, {"one": None})
        for processes in (2, 4):
            yield from trials.train(processes, {f"{processes} processes, {way}": way for way in WAYS})
        yield from trials.resume(4, {"one": "sequence", "2 processes, fsdp": "ddp", "2 processes, sequence": "fsdp"})
        yield from trials.resume(1, {f"2 processes, {way}": None for way in WAYS})
        for worker, way in enumerate(WAYS):
            yield from trials.lose(worker % 2, way)


class _Trials:
    """Trainings of one model in `root`, a row for each when it is done. `way` is its `--parallel`."""

    def __init__(self, root: Path, steps: int, rate: float) -> None:
        self.root = root
        self.half = steps // 2
        self.settings = {"steps": steps, "save_every": self.half, "rate": rate}
        shutil.copy(book_path(), root / "text.txt")
        (root / "config.json").write_text(json.dumps(CONFIG))
        train_tokenizer([str(root / "text.txt")], 300, root / "tokenizer")

    def arguments(self, name: str, way: str | None) -> list[str]:
        """Arguments of `landmark train`."""
        return train_arguments(self.root, self.root / name, *(["--parallel", way] if way else []), **self.settings)

    def train(self, processes: int, trainings: Mapping[str, str | None]) -> Iterator[Row]:
        """Trains, or resumes what `resume` has copied."""
        finish(start(processes, *(self.arguments(name, way) for name, way in trainings.items())))
        for name in trainings:
            yield self.row(name)

    def resume(self, processes: int, moves: Mapping[str, str | None]) -> Iterator[Row]:
        """Resumes checkpoints in the middle of other trainings."""
        named = {f"{name}, then {processes} {way or ''}".rstrip(): (name, way) for name, way in moves.items()}
        for name, (before, _) in named.items():
            resumable(self.root / before, self.root / name, self.half)
        yield from self.train(processes, {name: way for name, (_, way) in named.items()})

    def lose(self, worker: int, way: str) -> Iterator[Row]:
        """Kills one of two processes at three quarters, and resumes."""
        name = f"2 processes, {way}, one lost"
        running = start(2, self.arguments(name, way))
        kill_after(self.half + self.half // 2, self.root / name, running, worker)
        running.communicate(timeout=120)
        assert running.returncode != 0, "the training went on without one of its processes"
        yield from self.train(2, {name: way})

    def row(self, name: str) -> Row:
        """Largest differences from the training in one process, over every step that was taken."""
        whole, found = measures(self.root / "one"), measures(self.root / name)
        expected = whole[found[:, 0].long() - 1]
        loss, gradient = (found[:, 1] - expected[:, 1]).abs(), (found[:, 3] / expected[:, 3] - 1).abs()
        row: Row = {
            "training": name,
            "steps": len(found),
            "first_loss": whole[0, 1].item(),
            "last_loss": found[-1, 1].item(),
        }
        row |= {"loss": loss.max().item(), "gradient_norm": gradient.max().item()}
        return row
