"""Measurements of the converted SmolLM2, most important first: each is written at once, and all end with the time."""

import json
import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import landmark
from landmark.data.chat import ChatFormat, Facts, marked
from landmark.data.recall import random_name
from landmark.evaluation import passkey
from landmark.hf import LandmarkCache
from landmark.hf.reader import answer
from landmark.hf.tokenizer import encode
from reproduce.studies import smollm2_chat, smollm2_perplexity
from reproduce.studies.chat_prompts import TEST_PROMPTS
from reproduce.studies.options import PerplexityOptions
from reproduce.studies.records import Records
from reproduce.studies.smollm2_models import Pair, template
from reproduce.studies.smollm2_training import STARTED, WORKING, Conversion, finished, moved, now
from reproduce.trainings.smollm2 import SETTINGS


def perplexities(pair: Pair, texts: list[Tensor], length: int, windows: int, out: Path, until: float) -> Any:
    """Perplexity and divergence on windows of each text: original, converted over the window and through memory."""
    readings = smollm2_perplexity.readings_of(pair.converted.config, PerplexityOptions.readings, length)
    cut = smollm2_perplexity.windows_of({str(number): text for number, text in enumerate(texts)}, length, windows)
    records = Records(out / f"perplexity_{length}.jsonl", {"length": length})
    measured = smollm2_perplexity.measure_windows(pair, readings, cut, records, until + STARTED)
    return smollm2_perplexity.figures(length, measured)


def chat(pair: Pair, until: float) -> dict[str, Any]:
    """Divergence from the original on ordinary chat, and whole answers."""
    answers = {}
    for prompt in TEST_PROMPTS:
        if now() > until:
            break
        answers[prompt] = smollm2_chat.compared(pair, prompt, smollm2_chat.TOKENS)
    return smollm2_chat.figures(list(answers.values())) | {"answers": answers}


@torch.no_grad()
def passkeys(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, book: Tensor, length: int, samples: int, until: float
) -> dict[str, Any]:
    keys = passkey.PasskeyPrompts(tokenizer, book)
    right, wrong, began = 0, [], now()
    order = random.Random(0).sample(range(samples), samples)  # so that an early end has samples of all depths
    for index in order:
        if now() > until:
            break
        prompt = keys.prompt(length, index, samples)
        reply = passkey.ask(model, tokenizer, prompt, LandmarkCache(model.config))
        right += reply == prompt.key
        if reply != prompt.key:
            wrong.append((round(prompt.depth, 2), prompt.key, reply))
    done = right + len(wrong)
    speed = length * done / max(1e-9, now() - began)
    return {"length": length, "right": right, "of": done, "tokens_per_s": round(speed), "wrong": wrong[:5]}


@torch.no_grad()
def questions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, book: Tensor, length: int, samples: int, until: float
) -> dict[str, Any]:
    """Questions of all kinds in the chat template about a long text; right if the reply has every value."""
    chat_format = ChatFormat.of(tokenizer)
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
        pieces, at = [template(tokenizer, chat_format.begin)], 0
        for place, line in zip(places, statements, strict=True):
            stop = int(place * len(filler))
            pieces += [filler[at:stop], encode(tokenizer, f"\n\n{line}\n\n").ids]
            at = stop
        pieces += [filler[at:], template(tokenizer, "\n\n" + asked.question + chat_format.reply)]
        ids = torch.cat(pieces)
        cache = LandmarkCache(model.config)
        landmark.read(model, ids[:-1], cache)
        reply = str(tokenizer.decode(answer(model, ids[-1:], cache, max_new_tokens=40), skip_special_tokens=True))
        wanted, values = marked(asked.answer)
        expected = [wanted[start:stop] for start, stop in values] or ["not mentioned"]
        fine = all(value in reply for value in expected)
        right += fine
        done += 1
        shown.append(f"{'+' if fine else '-'} {asked.question} | {wanted} | {reply.strip()[:120]}")
    return {"length": length, "right": right, "of": done, "answers": shown}


def measure(
    base: PreTrainedModel,
    work: Conversion,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[Tensor],
    out: Path,
    *,
    until: float,
    small: bool,
) -> None:
    """Writes `out`/results.json after each measurement; a failure costs that measurement alone."""
    results: dict[str, Any] = {"steps": work.steps, "tokens": work.tokens, "settings": SETTINGS}

    def note(name: str, make: Callable[[], Any]) -> None:
        if now() > until:
            work.log(f"no time for {name}")
            return
        try:
            results[name] = make()
        except Exception:
            results[name] = traceback.format_exc().splitlines()[-1]
            work.log(traceback.format_exc())
        work.log(name, json.dumps(results[name], indent=1 if "questions" in name or name == "chat" else None))
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    pair = Pair(moved(base, torch.float32).eval(), moved(finished(base, work), torch.float32), tokenizer)
    size = (400, 1) if small else (2000, 5)
    note("perplexity", lambda: perplexities(pair, texts, *size, out, until=min(until, now() + 25)))
    fast = moved(pair.converted, WORKING)
    moved(pair.original, WORKING)
    book = texts[0]
    lengths = (400, 700) if small else (8192, 32768)
    few = 2 if small else 10
    for length in lengths:
        note(f"passkey {length}", lambda length=length: passkeys(fast, tokenizer, book, length, few, until))
    note("chat", lambda: chat(pair, until=min(until, now() + 25)))
    for length in lengths[:1] if small else (2000, 8000):
        note(f"questions {length}", lambda length=length: questions(fast, tokenizer, book, length, 2 * few, until))
    size = (600, 1) if small else (7800, 2)
    note("perplexity long", lambda: perplexities(pair, texts, *size, out, until=min(until, now() + 15)))
    if not small:
        note("passkey 131072", lambda: passkeys(fast, tokenizer, book, 131072, 5, until))
        note("passkey 32768 more", lambda: passkeys(fast, tokenizer, book, 32768, 40, until))
