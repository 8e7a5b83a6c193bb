"""What a conversion changes in ordinary chat: divergence along the original's greedy answers, and whole answers.

The original has full attention and its own KV cache; the converted model reads prompts and decodes through memory.
"""

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark.cli.output import print_escaped, tokens_read
from landmark.data.chat import NOT_MENTIONED
from landmark.evaluation.perplexity import mean_and_error
from landmark.evaluation.samples import share_interval
from landmark.hf import LandmarkCache
from landmark.hf.compat import cache_kwargs
from landmark.hf.reader import answer
from reproduce.studies.chat_prompts import TEST_PROMPTS
from reproduce.studies.options import ChatOptions
from reproduce.studies.records import Records
from reproduce.studies.smollm2_models import Pair, chat_prompt, greedy, template
from reproduce.studies.smollm2_perplexity import kl

TOKENS = ChatOptions.tokens


def run(options: ChatOptions) -> int:
    """Compares prompt after prompt, and prints the answers and the figures."""
    prompts = TEST_PROMPTS[: options.prompts]
    pair = Pair.load(options)
    records = Records(options.out, pair.settings() | {"tokens": options.tokens})
    with tokens_read(f"{len(prompts)} prompts", len(prompts)) as progress:
        for prompt in prompts:
            if prompt not in records:
                records.add(prompt, compared(pair, prompt, options.tokens))
            progress(1)
    measured = {prompt: records.by_key[prompt] for prompt in prompts}
    found = figures(list(measured.values()))
    if options.json:
        print(json.dumps(found))
        return 0
    for prompt, record in measured.items():
        print_escaped(f"{prompt}\n  original:  {record['original']}\n  converted: {record['converted']}", lines=True)
    for name, value in found.items():
        print_escaped(f"{name}: {value}")
    return 0


@torch.inference_mode()
def compared(pair: Pair, prompt: str, count: int) -> dict[str, Any]:
    """One prompt: both answers of at most `count` tokens, and the mean `divergence` along the original's in nats.

    `prefix` is the number of tokens that the answers have in common at their beginnings.
    """
    ids = template(pair.tokenizer, chat_prompt(pair.tokenizer, prompt)).to(pair.original.device)
    original = greedy(pair.original, ids, count)
    converted = answer(pair.converted, ids, LandmarkCache(pair.converted.config), max_new_tokens=count)
    followed = torch.tensor(original, device=ids.device)
    wanted = pair.original(input_ids=torch.cat((ids, followed))[None], use_cache=False).logits[0, len(ids) - 1 : -1]
    found = _logits_along(pair, ids, followed)
    divergence = kl(wanted.float().log_softmax(-1), found.float().log_softmax(-1))
    same = [one == other for one, other in zip(original, converted, strict=False)]
    return {
        "original": _text(pair, original),
        "converted": _text(pair, converted),
        "tokens": len(original),
        "identical": original == converted,
        "prefix": [*same, False].index(False),
        "divergence": float(divergence.mean()),
        "refused": NOT_MENTIONED in _text(pair, converted),
    }


def _logits_along(pair: Pair, ids: Tensor, followed: Tensor) -> Tensor:
    """Logits `[n, V]` of the converted model for each of `followed [n]`, read token by token behind the prompt `ids`.

    So they are those of decoding, where each token is a chunk of its own.
    """
    options = cache_kwargs(pair.converted, LandmarkCache(pair.converted.config))
    pieces = [ids, *followed[:-1].split(1)]
    return torch.cat([pair.converted(input_ids=piece[None], **options).logits[0, -1:] for piece in pieces])


def _text(pair: Pair, ids: list[int]) -> str:
    return str(pair.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def figures(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures over prompts: shares with Wilson's 95 % interval, means over prompts with their standard error."""
    divergence, error = mean_and_error(np.array([[record["divergence"]] for record in measured]))
    prefix, prefix_error = mean_and_error(np.array([[record["prefix"]] for record in measured]))
    found: dict[str, Any] = {"prompts": len(measured), "tokens": fmean(record["tokens"] for record in measured)}
    for name in ("identical", "refused"):
        count = sum(record[name] for record in measured)
        low, high = share_interval(count, len(measured))
        found |= {name: count, f"{name}_share": count / len(measured), f"{name}_low": low, f"{name}_high": high}
    found |= {"prefix": prefix, "prefix_se": prefix_error, "divergence": divergence, "divergence_se": error}
    return found | {"divergence_median": float(np.median([record["divergence"] for record in measured]))}
