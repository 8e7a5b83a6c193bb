"""Conversion of SmolLM2-135M-Instruct on one GPU within a given time, with measurements of the result.

This trained the adapter in the package: self-distillation with adapters of rank 16, in the stages of the training
smollm2_135m.
"""

import os
from dataclasses import replace
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the worker processes of the data loader tokenize

import math
import time
import traceback

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import landmark
from landmark.data.recall import ANSWER, TEXT
from landmark.data.text import read_text
from landmark.hf import LandmarkCache
from landmark.hf.loading import gguf_model, read_tokenizer
from landmark.hf.reader import answer
from landmark.hf.tokenizer import encode
from landmark.process_memory import keep_freed_pages
from landmark.training.stages import Stage
from reproduce.studies.chat_prompts import training_prompts
from reproduce.studies.options import ConvertOptions
from reproduce.studies.smollm2_measures import measure
from reproduce.studies.smollm2_models import chat_prompt, template
from reproduce.studies.smollm2_training import (
    CPU,
    DEVICE,
    WORKING,
    Conversion,
    Log,
    finished,
    moved,
    now,
    survived,
    train,
)
from reproduce.trainings.smollm2 import CONVERSION, REFINEMENT

# The shape of SmolLM2-135M, for dry runs without its weights.
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
CHATS = 448  # conversations that the teacher generates as training text
CHAT_TOKENS = 160  # of an answer


def run(options: ConvertOptions) -> int:
    """Converts, trains and measures."""
    if not options.smoke and (options.gguf is None or options.tokens is None or not options.book):
        raise ValueError("give --gguf, --tokens and --book, or --smoke for a dry run without them")
    books = [read_text(book) for book in options.book]
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out)
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    log(f"torch {torch.__version__} on {DEVICE if CPU else torch.cuda.get_device_name()}")
    if CPU:
        keep_freed_pages()
    if options.smoke:
        smoke(options, log)
        return 0
    ids = np.load(str(options.tokens))
    base, tokenizer = load(options)
    log("model and tokenizer are loaded")
    texts = [encode(tokenizer, book).ids for book in books]
    log(f"{len(ids):,} tokens to train on, {[len(text) for text in texts]} to measure on")
    schedule = CONVERSION if options.adapter is None else REFINEMENT
    if options.learning_rate is not None:
        schedule = replace(schedule, learning_rate=options.learning_rate)
    stages = [small_stage(stage) if options.small else stage for stage in schedule.stages]
    work = Conversion(base, log, schedule, options.adapter)
    ids = with_chats(ids, work, tokenizer, options.small)
    train(work, ids, tokenizer, stages, options.out, until=options.seconds - options.measuring)
    measure(base, work, tokenizer, texts, options.out, until=options.seconds, small=options.small)
    log("done")
    return 0


def load(options: ConvertOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, or two layers of it with `small`, and its tokenizer."""
    file = str(options.gguf)
    base = gguf_model(file, dtype=torch.float32)
    if options.small:
        small = _llama(base.config.to_dict() | {"num_hidden_layers": 2})
        small.load_state_dict(base.state_dict(), strict=False)
        base = small
    return base.eval(), read_tokenizer(file if options.tokenizer is None else options.tokenizer)


def small_stage(stage: Stage) -> Stage:
    """The stage in miniature: short windows, two in a batch."""
    positions = max(320, stage.window_positions // 10)
    recall = replace(stage.recall, keys=(1, 1), questions=(1, 1))
    return replace(stage, window_positions=positions, batch_size=2, recall=recall)


def _llama(settings: dict[str, Any]) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**settings))


@torch.no_grad()
def conversations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, tokens: int, batch: int = 128
) -> np.ndarray:
    """Ids of `count` conversations answered by the model itself, so that its replies stay as they are."""
    ids: list[int] = []
    end = tokenizer.eos_token_id
    prompts = training_prompts(count)
    for start in range(0, count, batch):
        texts = [chat_prompt(tokenizer, prompt) for prompt in prompts[start : start + batch]]
        tokenizer.padding_side = "left"
        given = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(DEVICE)
        out = model.generate(  # type: ignore[operator]
            **given, max_new_tokens=tokens, do_sample=True, temperature=0.8, top_p=0.95, pad_token_id=end
        )
        for row, text in zip(out[:, given["input_ids"].shape[1] :].tolist(), texts, strict=True):
            reply = row[: row.index(end)] if end in row else row
            ids += [*template(tokenizer, text).tolist(), *reply, end, *encode(tokenizer, "\n").ids.tolist()]
    return np.asarray(ids, np.uint16)


def with_chats(ids: np.ndarray, work: Conversion, tokenizer: PreTrainedTokenizerBase, small: bool) -> np.ndarray:
    """The training text with its share of conversations; without them if generating them fails."""
    began = now()
    try:
        chats = conversations(work.teacher.model, tokenizer, *((2, 8) if small else (CHATS, CHAT_TOKENS)))
    except Exception:
        work.log(traceback.format_exc())
        return ids
    share = work.schedule.chats
    times = max(1, round(share / (1 - share) * len(ids) / len(chats)))
    work.log(f"{len(chats):,} tokens of conversations, {times} times, made in {now() - began:.0f} s")
    work.log(tokenizer.decode(chats[:200].tolist())[-500:])
    return np.concatenate((ids, np.tile(chats, times)))


def smoke(options: ConvertOptions, log: Log) -> None:
    """Steps of every stage on random weights: compiles the kernels, logs speed and memory, asserts finite losses."""
    torch.manual_seed(0)
    stages = [small_stage(stage) if options.small else stage for stage in CONVERSION.stages]
    shape = SHAPE | ({"num_hidden_layers": 2, "vocab_size": 1024} if options.small else {})
    base = _llama(shape).eval()
    work = Conversion(base, log, CONVERSION)
    work.model.train()
    rng, batch = np.random.default_rng(0), {}
    for stage in stages:
        log(f"stage of {stage.batch_size} windows of {stage.window_positions}, {stage.attention}")
        plain = replace(stage, recall_fraction=0.0) if not stage.distractors else stage
        # Phases and lengths with specialized kernels: 0, 1, multiples of 16 and others.
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
            result, smaller = survived(lambda batch=batch: work.step(batch, 1e-3), log, stage)
            if result is None:
                work.optimizer.zero_grad(set_to_none=True)
                stage = smaller
                continue
            loss, norm = float(result["loss"]), float(result["norm"])
            speed = ids.numel() / (time.monotonic() - began)
            memory = 0 if CPU else torch.cuda.max_memory_allocated() / 2**30
            log(f"phase {phase} loss {loss:.6f} norm {norm:.4f} {speed:,.0f} tokens/s {memory:.0f} GiB")
            assert math.isfinite(loss), "the loss is not finite"
            assert math.isfinite(norm), "a gradient is not finite"
            if now() > options.seconds:
                log("smoke: out of time")
                return
    # Repeated steps on one batch must lower its loss.
    losses = [float(work.step(batch, 1e-3)["loss"]) for _ in range(3)]
    log(f"the same batch three times: {losses}")
    model = moved(finished(base, work), WORKING)
    cache = LandmarkCache(model.config)
    ids = torch.from_numpy(rng.integers(0, shape["vocab_size"], 600 if options.small else 9000))
    landmark.read(model, ids, cache)
    answer(model, ids[:3], cache, max_new_tokens=3)
    log("smoke: read through memory and decoded")
