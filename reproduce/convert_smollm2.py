"""Converts SmolLM2-135M-Instruct on one GPU within a given time, and measures what came out.

    python benchmarks/convert_smollm2.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --tokens train.npy --book book.txt \
        --out OUT --seconds 500

Self-distillation with adapters of rank 16 (`landmark.training`), in the stages of the recipe smollm2_135m: each gets
its share of the time, and the learning rate follows the clock. OUT gets the adapter every minute, a log and
results.json, so that whatever ends the run early leaves something of use. `--smoke` trains a few steps on random
weights of the same shape, at every length, which compiles the kernels and tells the speed; `--small` is a miniature
for a CPU.

TOKENS is a file of uint16 ids as numpy.save writes them, made by the tokenizer of the GGUF file.
"""

import argparse
import copy
import json
import math
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loaders' processes tokenize

import numpy as np
import torch
from chat_prompts import TEST_PROMPTS, training_prompts
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import landmark
from landmark.data.recall import ANSWER, COPY, REPLY, TEXT, random_name
from landmark.data.spoken import Facts, Voice, marked
from landmark.evaluation import passkey
from landmark.files import written_whole
from landmark.hf import LandmarkCache
from landmark.hf.loading import gguf_model, gguf_tokenizer
from landmark.hf.reader import answer
from landmark.hf.tokenizer import encode
from landmark.process_memory import keep_freed_pages
from landmark.training.adapters import adapt
from landmark.training.loss import distillation_loss
from landmark.training.models import FrozenCopy
from landmark.training.stages import Stage, StageBatches
from landmark.training.trainer import attending
from reproduce.trainings.smollm2 import LEARNING_RATE, LORA, SETTINGS, SHARES, STAGES, WARMUP

STARTED = time.monotonic()
CPU = not torch.cuda.is_available()
DEVICE = "cpu" if CPU else "cuda"
WORKING = torch.float32 if CPU else torch.bfloat16
FOREVER = 1_000_000
CHECKPOINT_EVERY = 60.0
# The shape of SmolLM2-135M, for runs without its weights.
SHAPE: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
CHATS = 384  # conversations that the teacher makes up to be taught on
CHAT_TOKENS = 160  # of an answer
CHAT_SHARE = 0.2  # of the text that windows are cut from


def now() -> float:
    return time.monotonic() - STARTED


class Log:
    """Lines with the time, on standard output and in OUT/log.txt."""

    def __init__(self, out: Path) -> None:
        self.file = (out / "log.txt").open("a", encoding="utf-8")

    def __call__(self, *said: Any) -> None:
        line = f"[{now():6.1f}] " + " ".join(map(str, said))
        print(line, flush=True)
        print(line, file=self.file, flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder with the tokenizer; default: that in the GGUF file")
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--book", type=Path, action="append", default=[], help="texts to measure on, not trained on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=500, help="for everything, from the start of the process")
    parser.add_argument("--measuring", type=float, default=110, help="of these, kept for measuring")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def small_stage(stage: Stage) -> Stage:
    """The stage in miniature: short windows, two in a batch."""
    positions = max(320, stage.window_positions // 10)
    recall = replace(stage.recall, keys=(1, 1), questions=(1, 1))
    return replace(stage, window_positions=positions, batch_size=2, recall=recall)


class Conversion:
    """A student, its teacher and the optimizer, trained by the clock."""

    def __init__(self, base: Any, say: Log) -> None:
        self.say = say
        self.teacher = FrozenCopy(copy.deepcopy(base).to(DEVICE, WORKING))
        # In float32: conversion compares hidden states, and rounding to 16 bits moves those of trained weights far.
        student = landmark.convert(copy.deepcopy(base), **SETTINGS).to(DEVICE, WORKING)
        self.model: Any = adapt(student, LORA, base="HuggingFaceTB/SmolLM2-135M-Instruct")
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()
        count = sum(parameter.numel() for parameter in self.parameters.values())
        say(f"{count:,} weights are trained, {2 * count / 1e6:.1f} MB in 16 bits")
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=not CPU
        )
        self.factor = 1.0  # of the learning rate, lowered where a loss was no number
        self.steps = self.tokens = 0
        self.kept: dict[int, Any] = {}
        self.good = self.snapshot()

    def snapshot(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def save(self, file: Path) -> None:
        """The adapter as peft names it, in 16 bits."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        tensors = {name: value.detach().to(torch.bfloat16).cpu().contiguous() for name, value in state.items()}
        told = {"settings": json.dumps(dict(self.model.config.landmark)), "steps": str(self.steps)}
        with written_whole(file) as partial:
            save_file(tensors, partial, told | {"tokens": str(self.tokens)})

    def step(self, batch: dict[str, Any], rate: float) -> dict[str, Tensor]:
        """One optimizer step on a micro-batch; what it measured stays on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.factor
        tensors = ("input_ids", "token_kinds", "labels", "loss_weights")
        ids, kinds, labels, weights = (batch[name].to(DEVICE, non_blocking=True) for name in tensors)
        stage, phase = batch["stage"], batch["phase"]
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=not CPU):
            taught = self.teacher.logits(self.model, ids)
            plain = (kinds == TEXT).all(1)
            how = attending(
                self.model.config,
                stage,
                phase,
                None,
                None,
                tokens=ids.shape[1],
                training=True,
                plain=plain,
                answers=kinds == ANSWER,
                distractors=self.kept,
            )
            logits = self.model(input_ids=ids, use_cache=False, **how).logits
        row, place = (kinds == ANSWER).nonzero(as_tuple=True)
        right = (logits[row, place - 1].argmax(-1) == labels[row, place]).sum()
        answers = (kinds == ANSWER) | (kinds == COPY) | (kinds == REPLY)
        loss, losses = distillation_loss(logits, taught, labels, weights, answers)
        del logits, taught
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.tokens += ids.numel()
        text = kinds == TEXT
        # Windows of text alone, apart from recall windows: there nothing is stated, and nothing else to be learnt.
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


def template(tokenizer: Any, text: str) -> Tensor:
    """Ids of a part of a chat template, in which special tokens are special; in texts they are text."""
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)


@torch.no_grad()
def conversations(model: Any, tokenizer: Any, count: int, tokens: int, batch: int = 128) -> np.ndarray:
    """Ids of `count` conversations, answered by the model itself: what it says it is to go on saying."""
    ids: list[int] = []
    end = tokenizer.eos_token_id
    prompts = training_prompts(count)
    for start in range(0, count, batch):
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts[start : start + batch]
        ]
        tokenizer.padding_side = "left"
        given = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(DEVICE)
        out = model.generate(
            **given, max_new_tokens=tokens, do_sample=True, temperature=0.8, top_p=0.95, pad_token_id=end
        )
        for row, text in zip(out[:, given["input_ids"].shape[1] :].tolist(), texts, strict=True):
            said = row[: row.index(end)] if end in row else row
            ids += [*template(tokenizer, text).tolist(), *said, end, *encode(tokenizer, "\n").ids.tolist()]
    return np.asarray(ids, np.uint16)


def with_chats(ids: np.ndarray, work: Conversion, tokenizer: Any, small: bool) -> np.ndarray:
    """The text to train on, a part of it conversations; without them where they fail."""
    began = now()
    try:
        chats = conversations(work.teacher.model, tokenizer, *((2, 8) if small else (CHATS, CHAT_TOKENS)))
    except Exception:
        work.say(traceback.format_exc())
        return ids
    times = max(1, round(CHAT_SHARE / (1 - CHAT_SHARE) * len(ids) / len(chats)))
    work.say(f"{len(chats):,} tokens of conversations, {times} times, made in {now() - began:.0f} s")
    work.say(tokenizer.decode(chats[:200].tolist())[-500:])
    return np.concatenate((ids, np.tile(chats, times)))


def batches(ids: np.ndarray, tokenizer: Any, stage: Stage, seed: int, workers: int) -> Iterator[dict[str, Any]]:
    made = StageBatches(
        ids,
        tokenizer.backend_tokenizer,
        [replace(stage, steps=FOREVER)],
        block_size=SETTINGS["block_size"],
        seed=seed,
        voice=Voice.of(tokenizer),
    )
    return iter(
        DataLoader(
            made,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=3 if workers else None,
            pin_memory=not CPU,
        )
    )


def learning_rate(fraction: float, step: int) -> float:
    """A warm-up by steps, and a cosine by time to a thirtieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * (0.03 + 0.97 * cosine)


def halved(stage: Stage) -> Stage:
    return replace(stage, batch_size=max(1, stage.batch_size // 2))


def use_blockwise(say: Log) -> None:
    """From now on attention is computed without kernels of our own."""
    from landmark.ops import fused

    fused.unsupported_reason = lambda query: "failed on this machine"  # type: ignore[assignment]
    say("the fused kernels failed: going on with blockwise attention")


def survived(attempt: Callable[[], Any], say: Log, stage: Stage) -> tuple[Any, Stage]:
    """The result of a step, or what to try instead: smaller batches where memory is short, else no kernels."""
    try:
        return attempt(), stage
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        say(f"out of memory with {stage.batch_size} windows of {stage.window_positions}: halving them")
        return None, halved(stage)
    except Exception:
        from landmark.ops import fused

        say(traceback.format_exc())
        if CPU or fused.unsupported_reason(torch.empty(1, 1, 1, 64, device=DEVICE)) is not None:
            raise
        use_blockwise(say)
        return None, stage


def train(work: Conversion, ids: np.ndarray, tokenizer: Any, stages: list[Stage], out: Path, until: float) -> None:
    """Goes through the stages, each until its share of the time is over; writes a checkpoint every minute."""
    say, began = work.say, now()
    work.model.train()
    workers = 0 if CPU else min(8, max(1, (os.cpu_count() or 2) - 4))
    ends = np.cumsum(SHARES) / sum(SHARES)
    saved = now()
    for number, (stage, end) in enumerate(zip(stages, ends, strict=True)):
        if number == len(stages) - 1:
            work.save(out / "adapter_before_last_stage.safetensors")
        source = batches(ids, tokenizer, stage, seed=1000 * number, workers=workers)
        measured: list[dict[str, Tensor]] = []
        since, tokens = now(), work.tokens
        first = None
        while (fraction := (now() - began) / (until - began)) < end:
            rate = learning_rate(fraction, work.steps)
            batch = next(source)
            result, smaller = survived(lambda batch=batch, rate=rate: work.step(batch, rate), say, stage)
            if smaller is not stage:
                stage = smaller
                source = batches(ids, tokenizer, stage, seed=1000 * number, workers=workers)
            if result is None:
                work.optimizer.zero_grad(set_to_none=True)
                continue
            measured.append(result)
            if len(measured) >= (5 if CPU else 20) or (first is None and len(measured) == 5):
                sums = {name: float(torch.stack([one[name] for one in measured]).sum()) for name in measured[0]}
                mean = sums["loss"] / len(measured)
                if not math.isfinite(mean) or not math.isfinite(sums["norm"]):
                    work.restore(work.good)
                    work.factor *= 0.3
                    work.optimizer.state.clear()
                    say(f"step {work.steps}: the loss is no number; back to the last checkpoint at a lower rate")
                else:
                    first = mean if first is None else first
                speed = (work.tokens - tokens) / max(1e-9, now() - since)
                parts = [f"{name} {sums[name] / sums[n]:.4f}" for name, n in PAIRS.items() if sums[n]]
                memory = "" if CPU else f" {torch.cuda.max_memory_allocated() / 2**30:.0f} GiB"
                say(
                    f"stage {number} step {work.steps} loss {mean:.4f}",
                    *parts,
                    f"norm {sums['norm'] / len(measured):.2f} rate {rate * work.factor:.1e} tokens {work.tokens:,}"
                    f" {speed:,.0f}/s{memory}",
                )
                measured, since, tokens = [], now(), work.tokens
            if now() - saved > CHECKPOINT_EVERY:
                if all(bool(torch.isfinite(parameter).all()) for parameter in work.parameters.values()):
                    work.good = work.snapshot()
                    work.save(out / "adapter.safetensors")
                saved = now()
    work.save(out / "adapter.safetensors")
    work.say(f"trained {work.steps} steps on {work.tokens:,} tokens in {now() - began:.0f} s")


PAIRS = {"text": "text_n", "filler": "filler_n", "right": "asked"}


def finished(base: Any, work: Conversion) -> Any:
    """The converted model with its adapter taken in, in float32, from the weights as they were loaded."""
    student = landmark.convert(copy.deepcopy(base), **SETTINGS)
    adapted: Any = adapt(student, LORA, base="")
    state = work.snapshot()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name].to(torch.bfloat16).to(parameter))
    merged = adapted.merge_and_unload()
    return landmark.convert(merged, **SETTINGS, trained_tokens=max(1, work.tokens)).eval()


def log_likelihoods(logits: Tensor, ids: Tensor) -> tuple[float, int]:
    """Sum over next tokens in nats, and their number."""
    losses = torch.nn.functional.cross_entropy(
        logits[0, :-1, : SHAPE["vocab_size"]].float(), ids[0, 1:], reduction="sum"
    )
    return float(losses), ids.shape[1] - 1


@torch.no_grad()
def perplexities(original: Any, model: Any, texts: list[Tensor], length: int, windows: int, until: float) -> dict:
    """Of the first windows of each text: the original, the converted in the window and through memory, divergence."""
    sums: dict[str, float] = {"original": 0.0, "window": 0.0, "memory": 0.0, "divergence": 0.0}
    count = 0
    for number in range(windows):
        for text in texts:
            if now() > until:
                break
            ids = text[number * length : (number + 1) * length][None].to(DEVICE)
            if ids.shape[1] < length:
                continue
            whole = original(input_ids=ids, use_cache=False).logits
            window = model(input_ids=ids, use_cache=False).logits[..., : whole.shape[-1]]
            cache = LandmarkCache(model.config, chunk_size=8 * SETTINGS["block_size"])
            memory = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            for name, logits in (("original", whole), ("window", window), ("memory", memory)):
                loss, tokens = log_likelihoods(logits, ids)
                sums[name] += loss
            p, q = whole[0].float().log_softmax(-1), window[0].float().log_softmax(-1)
            sums["divergence"] += float((p.exp() * (p - q)).sum(-1)[:-1].sum())
            count += tokens
    count = max(1, count)
    shown = {name: math.exp(sums[name] / count) for name in ("original", "window", "memory")}
    return shown | {"divergence": sums["divergence"] / count, "tokens": count, "length": length}


@torch.no_grad()
def passkeys(model: Any, tokenizer: Any, book: Tensor, length: int, samples: int, until: float) -> dict[str, Any]:
    keys = passkey.PasskeyPrompts(tokenizer, book)
    right, wrong, began = 0, [], now()
    order = random.Random(0).sample(range(samples), samples)  # so that a run cut short saw all depths alike
    for index in order:
        if now() > until:
            break
        prompt = keys.prompt(length, index, samples)
        said = passkey.ask(model, tokenizer, prompt, LandmarkCache(model.config))
        right += said == prompt.key
        if said != prompt.key:
            wrong.append((round(prompt.depth, 2), prompt.key, said))
    done = right + len(wrong)
    speed = length * done / max(1e-9, now() - began)
    return {"length": length, "right": right, "of": done, "tokens_per_s": round(speed), "wrong": wrong[:5]}


@torch.no_grad()
def spoken(model: Any, tokenizer: Any, book: Tensor, length: int, samples: int, until: float) -> dict[str, Any]:
    """Questions in plain words through the chat template, of all kinds; right if every value is in the answer."""
    voice = Voice.of(tokenizer)
    rng = np.random.default_rng(7)
    right, done, shown = 0, 0, []
    for _ in range(samples):
        if now() > until:
            break
        facts = Facts(rng, random_name)
        drawn = [facts.draw() for _ in range(3)]
        asked = facts.unanswerable() if rng.random() < 0.15 else drawn[0]
        start = int(rng.integers(max(1, len(book) - length)))
        filler = book[start : start + length]
        statements = [marked(line)[0] for fact in drawn for line in fact.statements]
        places = sorted(rng.random(len(statements)))
        pieces, at = [template(tokenizer, voice.begin)], 0
        for place, line in zip(places, statements, strict=True):
            stop = int(place * len(filler))
            pieces += [filler[at:stop], encode(tokenizer, f"\n\n{line}\n\n").ids]
            at = stop
        pieces += [filler[at:], template(tokenizer, "\n\n" + asked.question + voice.reply)]
        ids = torch.cat(pieces)
        cache = LandmarkCache(model.config)
        landmark.read(model, ids[:-1], cache)
        said = tokenizer.decode(answer(model, ids[-1:], cache, max_new_tokens=40), skip_special_tokens=True)
        wanted, values = marked(asked.answer)
        expected = [wanted[start:stop] for start, stop in values] or ["not mentioned"]
        fine = all(value in said for value in expected)
        right += fine
        done += 1
        shown.append(f"{'+' if fine else '-'} {asked.question} | {wanted} | {said.strip()[:120]}")
    return {"length": length, "right": right, "of": done, "answers": shown}


@torch.no_grad()
def chat(original: Any, model: Any, tokenizer: Any) -> list[dict[str, str]]:
    told = []
    for question in TEST_PROMPTS[:3]:
        message = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        ids = template(tokenizer, text)
        plain = original.generate(ids[None].to(DEVICE), max_new_tokens=40, do_sample=False, pad_token_id=2)
        said = answer(model, ids, LandmarkCache(model.config), max_new_tokens=40)
        told.append(
            {
                "question": question,
                "original": tokenizer.decode(plain[0, len(ids) :], skip_special_tokens=True),
                "converted": tokenizer.decode(said, skip_special_tokens=True),
            }
        )
    return told


def measure(base: Any, work: Conversion, tokenizer: Any, texts: list[Tensor], out: Path, args: Any) -> None:
    """Most important first; every result is written down at once, and a failure costs one measurement."""
    results: dict[str, Any] = {"steps": work.steps, "tokens": work.tokens, "settings": SETTINGS}

    def note(name: str, make: Callable[[], Any]) -> None:
        if now() > args.seconds:
            work.say(f"no time for {name}")
            return
        try:
            results[name] = make()
        except Exception:
            results[name] = traceback.format_exc().splitlines()[-1]
            work.say(traceback.format_exc())
        work.say(name, json.dumps(results[name], indent=1 if "spoken" in name or name == "chat" else None))
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    until = args.seconds
    model = finished(base, work).to(DEVICE)
    original = base.to(DEVICE).eval()
    size = (400, 1) if args.small else (2000, 5)
    note("perplexity", lambda: perplexities(original, model, texts, *size, until=min(until, now() + 25)))
    fast, plain = model.to(WORKING), original.to(WORKING)
    book = texts[0]
    lengths = (400, 700) if args.small else (8192, 32768)
    few = 2 if args.small else 10
    for length in lengths:
        note(f"passkey {length}", lambda length=length: passkeys(fast, tokenizer, book, length, few, until))
    note("chat", lambda: chat(plain, fast, tokenizer))
    for length in lengths[:1] if args.small else (2000, 8000):
        note(f"spoken {length}", lambda length=length: spoken(fast, tokenizer, book, length, 2 * few, until))
    size = (600, 1) if args.small else (7800, 2)
    note("perplexity long", lambda: perplexities(plain, fast, texts, *size, until=min(until, now() + 15)))
    if not args.small:
        note("passkey 131072", lambda: passkeys(fast, tokenizer, book, 131072, 5, until))
        note("passkey 32768 more", lambda: passkeys(fast, tokenizer, book, 32768, 40, until))


def smoke(args: Any, say: Log) -> None:
    """Steps of every stage on random weights: compiles kernels, asserts that it learns, tells speed and memory."""
    torch.manual_seed(0)
    stages = [small_stage(stage) if args.small else stage for stage in STAGES]
    shape = SHAPE | ({"num_hidden_layers": 2, "vocab_size": 1024} if args.small else {})
    base = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    work = Conversion(base, say)
    work.model.train()
    rng = np.random.default_rng(0)
    for stage in stages:
        say(f"stage of {stage.batch_size} windows of {stage.window_positions}, {stage.attention}")
        plain = replace(stage, recall_fraction=0.0) if not stage.distractors else stage
        # Phases and lengths that kernels are compiled for apart: 0, 1, multiples of 16 and others.
        for count, phase in enumerate((5, 16, 0, 1, 7, 9)):
            tokens = stage.window_positions - stage.window_positions // 64 - 2 - 3 * (count % 2)
            ids = torch.from_numpy(rng.integers(0, shape["vocab_size"], (stage.batch_size, tokens)))
            kinds = torch.full_like(ids, TEXT, dtype=torch.uint8)
            if stage.distractors:
                kinds[::2, tokens // 2 : tokens // 2 + 9] = ANSWER
            weights = torch.ones(ids.shape)
            batch = {"input_ids": ids, "token_kinds": kinds, "labels": ids, "loss_weights": weights}
            batch |= {"stage": plain, "phase": phase}
            began = time.monotonic()
            result, smaller = survived(lambda batch=batch: work.step(batch, 1e-3), say, stage)
            if result is None:
                work.optimizer.zero_grad(set_to_none=True)
                stage = smaller
                continue
            loss, norm = float(result["loss"]), float(result["norm"])
            speed = ids.numel() / (time.monotonic() - began)
            memory = 0 if CPU else torch.cuda.max_memory_allocated() / 2**30
            say(f"phase {phase} loss {loss:.6f} norm {norm:.4f} {speed:,.0f} tokens/s {memory:.0f} GiB")
            assert math.isfinite(loss), "the loss is no number"
            assert math.isfinite(norm), "a gradient is no number"
            if now() > args.seconds:
                say("smoke: time is over")
                return
    # The same batch again and again must be learnt.
    losses = [float(work.step(batch, 1e-3)["loss"]) for _ in range(3)]
    say(f"the same batch three times: {losses}")
    model = finished(base, work).to(DEVICE, WORKING)
    cache = LandmarkCache(model.config)
    ids = torch.from_numpy(rng.integers(0, shape["vocab_size"], 600 if args.small else 9000))
    landmark.read(model, ids, cache)
    answer(model, ids[:3], cache, max_new_tokens=3)
    say("smoke: read through memory and decoded; all is well")


def main() -> int:
    args = options()
    args.out.mkdir(parents=True, exist_ok=True)
    say = Log(args.out)
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    say(f"torch {torch.__version__} on {DEVICE if CPU else torch.cuda.get_device_name()}")
    if CPU:
        keep_freed_pages()
    if args.smoke:
        smoke(args, say)
        return 0
    base = gguf_model(args.gguf, dtype=torch.float32)
    if args.small:
        small = LlamaForCausalLM(LlamaConfig(**base.config.to_dict() | {"num_hidden_layers": 2}))
        small.load_state_dict(base.state_dict(), strict=False)
        base = small
    base = base.eval()
    tokenizer = gguf_tokenizer(args.gguf) if args.tokenizer is None else AutoTokenizer.from_pretrained(args.tokenizer)
    say("model and tokenizer are loaded")
    ids = np.load(args.tokens)
    texts = [encode(tokenizer, book.read_text(encoding="utf-8")).ids for book in args.book]
    say(f"{len(ids):,} tokens to train on, {[len(text) for text in texts]} to measure on")
    stages = [small_stage(stage) if args.small else stage for stage in STAGES]
    work = Conversion(base, say)
    ids = with_chats(ids, work, tokenizer, args.small)
    train(work, ids, tokenizer, stages, args.out, until=args.seconds - args.measuring)
    measure(base, work, tokenizer, texts, args.out, args)
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
