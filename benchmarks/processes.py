"""Whether a training is the same in one, two and four processes, whichever way they share it, whatever is lost between.

    python benchmarks/processes.py [--steps 50] [--folder DIR]

Trains a tiny model on the book in the package: in one process, then in two and in four with `--parallel` ddp, fsdp and
sequence; on from checkpoints of other numbers of processes; and with a process killed on the way. Prints for each how
far its losses and the norms of its gradients are from those of one process at any step. docs/scaling.md tells what was
found.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

# The trials are the tests' own, of which the tests do a few steps.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))

from processes import WAYS, finish, kill_after, measures, options, resumable, start

from landmark import assets
from landmark.data.tokenizer import train_tokenizer

CONFIG = {"model_type": "llama", "vocab_size": 300, "intermediate_size": 96, "num_hidden_layers": 2}
CONFIG |= {"max_position_embeddings": 256, "tie_word_embeddings": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--folder", type=Path, help="for the trainings; the system's temporary one by default")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=told.folder) as folder:
        trials = Trials(Path(folder), told.steps, told.learning_rate)
        trials.train(1, {"one": None})
        for processes in (2, 4):
            trials.train(processes, {f"{processes} processes, {way}": way for way in WAYS})
        moves = {"one": "sequence", "2 processes, fsdp": "ddp", "2 processes, sequence": "fsdp"}
        trials.go_on(4, moves)
        trials.go_on(1, {f"2 processes, {way}": None for way in WAYS})
        for worker, way in enumerate(WAYS):
            trials.lose(worker % 2, way)


class Trials:
    """Trainings of one model in `root`; each is told on standard output when it is done."""

    def __init__(self, root: Path, steps: int, rate: float) -> None:
        self.root = root
        self.half = steps // 2
        self.settings = {"steps": steps, "save_every": self.half, "rate": rate}
        shutil.copy(Path(assets.__file__).with_name("book.txt"), root / "text.txt")
        (root / "config.json").write_text(json.dumps(CONFIG))
        train_tokenizer([str(root / "text.txt")], 300, root / "tokenizer")

    def arguments(self, name: str, way: str | None) -> list[str]:
        """Those of `landmark train`."""
        return options(self.root, self.root / name, *(["--parallel", way] if way else []), **self.settings)

    def train(self, processes: int, trainings: dict[str, str | None]) -> None:
        """Trains each from the beginning."""
        finish(start(processes, *(self.arguments(name, way) for name, way in trainings.items())))
        for name in trainings:
            self.tell(name)

    def go_on(self, processes: int, moves: dict[str, str | None]) -> None:
        """Goes on from the checkpoints in the middle of other trainings."""
        named = {f"{name}, then {processes} {way or ''}".rstrip(): (name, way) for name, way in moves.items()}
        for name, (before, _) in named.items():
            resumable(self.root / before, self.root / name, self.half)
        self.train(processes, {name: way for name, (_, way) in named.items()})

    def lose(self, worker: int, way: str) -> None:
        """Kills one of two processes at three quarters, and goes on."""
        name = f"2 processes, {way}, one lost"
        running = start(2, self.arguments(name, way))
        kill_after(self.half + self.half // 2, self.root / name, running, worker)
        running.communicate(timeout=120)
        assert running.returncode != 0, "the training went on without one of its processes"
        self.train(2, {name: way})

    def tell(self, name: str) -> None:
        """How far the training is from that of one process, every step counted as often as it was taken."""
        whole, found = measures(self.root / "one"), measures(self.root / name)
        expected = whole[found[:, 0].long() - 1]
        loss, gradient = (found[:, 1] - expected[:, 1]).abs(), (found[:, 3] / expected[:, 3] - 1).abs()
        row = {
            "training": name,
            "steps": len(found),
            "first_loss": whole[0, 1].item(),
            "last_loss": found[-1, 1].item(),
        }
        row |= {"loss": loss.max().item(), "gradient_norm": gradient.max().item()}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
