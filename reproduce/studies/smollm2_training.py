"""Self-distillation of SmolLM2 against the clock: each stage gets its share of the time.

The learning rate follows the clock. The adapter is written every minute, so that an interruption leaves something of
use. Out of memory halves a stage's batch; a failure of the fused kernels falls back to blockwise attention.
"""

import copy
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import landmark
from landmark.data.chat import ChatFormat
from landmark.data.recall import ANSWER, COPY, REPLY, TEXT
from landmark.files import written_whole
from landmark.hf.loading import cast
from landmark.training.adapters import adapt
from landmark.training.loss import distillation_loss
from landmark.training.models import FrozenCopy
from landmark.training.stages import Stage, StageBatches
from landmark.training.trainer import attention_arguments
from reproduce.trainings.smollm2 import LORA, MODEL, SETTINGS, WARMUP, Clocked

STARTED = time.monotonic()
CPU = not torch.cuda.is_available()
DEVICE = "cpu" if CPU else "cuda"
WORKING = torch.float32 if CPU else torch.bfloat16  # of reading; training is in bfloat16
FOREVER = 1_000_000
CHECKPOINT_EVERY = 60.0  # seconds
# Metrics in the log: sums over tokens, and the counts to divide them by.
METRICS = {"text": "text_n", "filler": "filler_n", "right": "asked"}


def now() -> float:
    """Seconds since the process began."""
    return time.monotonic() - STARTED


class Log:
    """Lines with the time, on standard output and in `out`/log.txt."""

    def __init__(self, out: Path) -> None:
        self.file = (out / "log.txt").open("a", encoding="utf-8")

    def __call__(self, *words: Any) -> None:
        line = f"[{now():6.1f}] " + " ".join(map(str, words))
        print(line, flush=True)
        print(line, file=self.file, flush=True)


def moved(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model on `DEVICE`, its parameters in `dtype`."""
    torch.nn.Module.to(model, DEVICE)
    return cast(model, dtype)


class Conversion:
    """A student, its teacher and the optimizer. It goes on from the weights in the file `adapter`, if that is given."""

    def __init__(self, base: PreTrainedModel, log: Log, schedule: Clocked, adapter: Path | None = None) -> None:
        self.log, self.schedule = log, schedule
        self.teacher = FrozenCopy(moved(copy.deepcopy(base), torch.bfloat16))
        # In float32: the self-check of conversion compares hidden states, which 16 bits would round too far.
        student = moved(landmark.convert(copy.deepcopy(base), **SETTINGS), torch.bfloat16)
        self.model: Any = adapt(student, LORA, base=MODEL)
        if adapter is not None:
            set_peft_model_state_dict(self.model, load_file(adapter))
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()
        count = sum(parameter.numel() for parameter in self.parameters.values())
        log(f"{count:,} parameters are trained, {2 * count / 1e6:.1f} MB in 16 bits")
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=not CPU
        )
        self.factor = 1.0  # on the learning rate, lowered after a loss that was not finite
        self.steps = self.tokens = 0
        self.distractors: dict[int, Any] = {}
        self.good = self.snapshot()

    def snapshot(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def checkpoint(self, file: Path) -> None:
        """Saves the adapter, and keeps what `fall_back` returns to, unless a parameter is not finite."""
        if all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters.values()):
            self.good = self.snapshot()
            self.save(file)

    def fall_back(self) -> None:
        """Goes back to the last checkpoint, with fresh moments and a lower learning rate."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.good[name])
        self.factor *= 0.3
        self.optimizer.state.clear()

    def save(self, file: Path) -> None:
        """Writes the adapter under the names of peft, in 16 bits."""
        state = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        tensors = {name: value.detach().to(torch.bfloat16).cpu().contiguous() for name, value in state.items()}
        counts = {"steps": str(self.steps), "tokens": str(self.tokens)}
        with written_whole(file) as partial:
            save_file(tensors, partial, {"settings": json.dumps(dict(self.model.config.landmark))} | counts)

    def step(self, batch: dict[str, Any], rate: float) -> dict[str, Tensor]:
        """One optimizer step on a micro-batch; returns metrics, which stay on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.factor
        tensors = ("input_ids", "token_kinds", "labels", "loss_weights")
        ids, kinds, labels, weights = (batch[name].to(DEVICE, non_blocking=True) for name in tensors)
        stage, phase = batch["stage"], batch["phase"]
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            teacher_logits = self.teacher.logits(self.model, ids)
            plain = (kinds == TEXT).all(1)
            attention = attention_arguments(
                self.model.config,
                stage,
                phase,
                None,
                None,
                tokens=ids.shape[1],
                training=True,
                plain=plain,
                answers=kinds == ANSWER,
                distractors=self.distractors,
            )
            logits = self.model(input_ids=ids, use_cache=False, **attention).logits
        row, position = (kinds == ANSWER).nonzero(as_tuple=True)
        right = (logits[row, position - 1].argmax(-1) == labels[row, position]).sum()
        answers = (kinds == ANSWER) | (kinds == COPY) | (kinds == REPLY)
        loss, losses = distillation_loss(logits, teacher_logits, labels, weights, answers)
        del logits, teacher_logits
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.tokens += ids.numel()
        text = kinds == TEXT
        # Plain windows, without recall tasks, are logged apart from the filler of recall windows.
        alone = text & plain[:, None]
        zero = losses.new_zeros(())
        return {
            "loss": loss.detach(),
            "norm": norm.detach(),
            "text": (losses * alone).sum(),
            "text_n": alone.sum() + zero,
            "filler": (losses * (text & ~plain[:, None])).sum(),
            "filler_n": (text & ~plain[:, None]).sum() + zero,
            "right": right + zero,
            "asked": zero + len(row),
        }


def batches(
    ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, stage: Stage, seed: int, workers: int
) -> Iterator[dict[str, Any]]:
    """Micro-batches of a stage, without end."""
    backend: Any = tokenizer.backend_tokenizer
    micro_batches = StageBatches(
        ids,
        backend,
        [replace(stage, steps=FOREVER)],
        block_size=SETTINGS["block_size"],
        seed=seed,
        chat_format=ChatFormat.of(tokenizer),
    )
    return iter(
        DataLoader(
            micro_batches,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=3 if workers else None,
            pin_memory=not CPU,
        )
    )


def learning_rate(highest: float, fraction: float, step: int) -> float:
    """A warm-up by steps, then a cosine by time down to a thirtieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
    return highest * min(1.0, (step + 1) / WARMUP) * (0.03 + 0.97 * cosine)


def halved(stage: Stage) -> Stage:
    """The stage with half of its batch size."""
    return replace(stage, batch_size=max(1, stage.batch_size // 2))


def use_blockwise(log: Log) -> None:
    """Replaces the fused kernels by blockwise attention."""
    from landmark.ops import fused

    fused.unsupported_reason = lambda query: "failed on this machine"  # type: ignore[assignment]
    log("the fused kernels failed: going on with blockwise attention")


def survived(attempt: Callable[[], Any], log: Log, stage: Stage) -> tuple[Any, Stage]:
    """The result of a step and its stage; or None and the stage to retry: halved if out of memory, else blockwise."""
    try:
        return attempt(), stage
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        log(f"out of memory with {stage.batch_size} windows of {stage.window_positions}: halving them")
        return None, halved(stage)
    except Exception:
        from landmark.ops import fused

        log(traceback.format_exc())
        if CPU or fused.unsupported_reason(torch.empty(1, 1, 1, 64, device=DEVICE)) is not None:
            raise
        use_blockwise(log)
        return None, stage


class Measured:
    """The steps of a stage since its last line in the log."""

    def __init__(self, work: Conversion, stage: int) -> None:
        self.work, self.stage = work, stage
        self.lines = 0
        self._begin()

    def _begin(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.since, self.tokens = now(), self.work.tokens

    def add(self, metrics: dict[str, Tensor], rate: float) -> None:
        """Takes a step. Every 20 of them, and after the first five, it logs their means, or takes back their training
        if those are not finite."""
        self.steps.append(metrics)
        if len(self.steps) < (20 if self.lines and not CPU else 5):
            return
        work, count = self.work, len(self.steps)
        sums = {name: float(torch.stack([one[name] for one in self.steps]).sum()) for name in metrics}
        if not math.isfinite(sums["loss"]) or not math.isfinite(sums["norm"]):
            work.fall_back()
            work.log(f"step {work.steps}: the loss is not finite; back to the last checkpoint at a lower rate")
        else:
            self.lines += 1
        speed = (work.tokens - self.tokens) / max(1e-9, now() - self.since)
        memory = "" if CPU else f" {torch.cuda.max_memory_allocated() / 2**30:.0f} GiB"
        work.log(
            f"stage {self.stage} step {work.steps} loss {sums['loss'] / count:.4f}",
            *(f"{name} {sums[name] / sums[n]:.4f}" for name, n in METRICS.items() if sums[n]),
            f"norm {sums['norm'] / count:.2f} rate {rate * work.factor:.1e} tokens {work.tokens:,}"
            f" {speed:,.0f}/s{memory}",
        )
        self._begin()


def train(
    work: Conversion, ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, stages: list[Stage], out: Path, until: float
) -> None:
    """Trains each stage for its share of the time, and writes a checkpoint every minute."""
    began = saved = now()
    work.model.train()
    workers = 0 if CPU else min(8, max(1, (os.cpu_count() or 2) - 4))
    shares = work.schedule.shares
    ends = np.cumsum(shares) / sum(shares)
    for number, (stage, end) in enumerate(zip(stages, ends, strict=True)):
        if number == len(stages) - 1:
            work.save(out / "adapter_before_last_stage.safetensors")
        source = batches(ids, tokenizer, stage, seed=1000 * number, workers=workers)
        measured = Measured(work, number)
        while (fraction := (now() - began) / (until - began)) < end:
            rate = learning_rate(work.schedule.learning_rate, fraction, work.steps)
            batch = next(source)
            result, smaller = survived(lambda batch=batch, rate=rate: work.step(batch, rate), work.log, stage)
            if smaller is not stage:
                stage = smaller
                source = batches(ids, tokenizer, stage, seed=1000 * number, workers=workers)
            if result is None:
                work.optimizer.zero_grad(set_to_none=True)
                continue
            measured.add(result, rate)
            if now() - saved > CHECKPOINT_EVERY:
                work.checkpoint(out / "adapter.safetensors")
                saved = now()
    work.save(out / "adapter.safetensors")
    work.log(f"trained {work.steps} steps on {work.tokens:,} tokens in {now() - began:.0f} s")


def finished(base: PreTrainedModel, work: Conversion) -> PreTrainedModel:
    """The converted model with its adapter merged, in float32."""
    student = landmark.convert(copy.deepcopy(base), **SETTINGS)
    adapted: Any = adapt(student, LORA, base="")
    state = work.snapshot()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name].to(torch.bfloat16).to(parameter))
    merged = adapted.merge_and_unload()
    return landmark.convert(merged, **SETTINGS, trained_tokens=max(1, work.tokens)).eval()
