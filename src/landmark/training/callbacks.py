"""Callbacks of the Trainer: progress bar, JSON log, count of trained tokens, checkpoint on Ctrl-C."""

import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import IO, Any

import torch
import torch.distributed
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PretrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from landmark.hf.config import landmark_settings

SHOWN = {
    "loss": "loss {:.3f}",
    "text_loss": "text {:.3f}",
    "answer_loss": "answers {:.3f}",
    "answer_accuracy": "right {:.1%}",
    "learning_rate": "rate {:.2e}",
    "eval_loss": "validation {:.3f}",
    "eval_text_loss": "text {:.3f}",
    "eval_answer_loss": "answers {:.3f}",
    "eval_answer_accuracy": "right {:.1%}",
}


class TrainedTokens(TrainerCallback):
    """Counts the tokens that a model was trained on with landmarks, in the configuration that is saved with it.

    `step_tokens[s]` is the number of ordinary tokens with landmarks in step s. A model without a count gets none.
    """

    def __init__(self, config: PretrainedConfig, step_tokens: Sequence[int]) -> None:
        self.config, self.before, self.step_tokens = config, landmark_settings(config).trained_tokens, step_tokens

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *others: Any, **more: Any) -> None:
        self.on_step_end(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *others: Any, **more: Any) -> None:
        if self.before is not None:
            self.config.landmark["trained_tokens"] = self.before + sum(self.step_tokens[: state.global_step])


class Report(TrainerCallback):
    """Progress bar on standard error (lines where that is no terminal), and a JSON log.

    `step_tokens[s]` is the number of ordinary tokens in step s, by which the remaining time is estimated: stages differ
    in the length of their windows. `json_target` is a path, `-` for standard output, or None.
    """

    def __init__(self, step_tokens: Sequence[int], json_target: str | None = None) -> None:
        self.read = [0]
        for tokens in step_tokens:
            self.read.append(self.read[-1] + tokens)
        self.json_target = json_target
        self.json_file: IO[str] | None = None
        self.open_files = ExitStack()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f}%"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Opens the bar and the log, at the step where a resumed training begins."""
        if self.json_target == "-":
            self.json_file = sys.stdout
        elif self.json_target is not None:
            # close() closes it.
            file = open(self.json_target, "a", encoding="utf-8")  # noqa: SIM115
            self.json_file = self.open_files.enter_context(file)
        self.began = self.measured = time.monotonic()
        self.first = self.last = self.read[state.global_step]
        self.task = self.progress.add_task("training", total=self.read[-1], completed=self.first)
        self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Advances the bar."""
        self.progress.update(self.task, completed=self.read[state.global_step])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Prints and logs one event."""
        logs = dict(logs or {})
        speed = self._tokens_per_second(state.global_step) if "loss" in logs else None
        event = "train" if "loss" in logs else "eval" if "eval_loss" in logs else "end"
        if self.json_file is not None:
            line = {"event": event, "step": state.global_step, "tokens": self.read[state.global_step]}
            line |= {"tokens_per_second": speed} if speed is not None else {}
            print(json.dumps(line | logs), file=self.json_file, flush=True)
        if event != "end":
            self._show(state.global_step, logs, speed)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Closes the bar."""
        self.progress.stop()

    def close(self) -> None:
        """Closes the bar and the log, however the training ended."""
        self.progress.stop()
        self.open_files.close()

    def _tokens_per_second(self, step: int) -> float:
        now, read = time.monotonic(), self.read[step]
        speed = (read - self.last) / max(now - self.measured, 1e-9)
        self.measured, self.last = now, read
        return speed

    def _show(self, step: int, logs: dict[str, Any], speed: float | None) -> None:
        parts = [form.format(logs[name]) for name, form in SHOWN.items() if name in logs]
        if speed is not None:
            elapsed, done = time.monotonic() - self.began, self.read[step] - self.first
            left = (self.read[-1] - self.read[step]) * elapsed / max(done, 1)
            parts += [f"{speed:,.0f} tokens/s", f"{_clock(left)} left"]
        line = f"step {step:,}/{len(self.read) - 1:,}  " + "  ".join(parts)
        self.progress.console.print(line, highlight=False, soft_wrap=True)


class StopOnSignal(TrainerCallback):
    """Writes a checkpoint and stops after the current step on the first SIGINT or SIGTERM; the second one kills.

    All processes of a training stop after the same step, whichever of them received the signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self.earlier: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self.earlier[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Requests a checkpoint and the end of training."""
        if args.world_size > 1:
            asked = torch.tensor(float(self.requested), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.requested = bool(asked)
        if self.requested:
            control.should_save = control.should_training_stop = True

    def _request(self, number: int, frame: FrameType | None) -> None:
        print("stopping after this step; the checkpoint follows", file=sys.stderr)
        self.requested = True
        signal.signal(number, self.earlier[number])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
