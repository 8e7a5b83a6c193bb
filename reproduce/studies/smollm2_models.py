"""A model before and after its conversion, side by side, and its chat template."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import landmark
from landmark.evaluation.samples import digest
from landmark.hf.fingerprint import model_fingerprint
from landmark.hf.loading import read_tokenizer
from landmark.hf.plain import load_plain
from landmark.hf.tokenizer import quiet_transformers
from reproduce.studies.options import ConvertedOptions


@dataclass(frozen=True)
class Pair:
    """The `original` with its own full attention, and the `converted` model; both on a CPU."""

    original: PreTrainedModel
    converted: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, options: ConvertedOptions) -> "Pair":
        """The models that the options name."""
        torch.set_num_threads(options.threads)
        quiet_transformers()
        warnings.filterwarnings("ignore", message="the weights differ slightly")
        tokenizer = read_tokenizer(options.original)
        original = load_plain(options.original, dtype=options.dtype)
        converted = landmark.load_adapter(options.original, adapter_of(options), dtype=options.dtype)
        return cls(original, converted.eval(), tokenizer)

    def settings(self) -> dict[str, Any]:
        """What of the models determines a measurement, for `Records`."""
        return {"model": digest(model_fingerprint(self.converted))}


def adapter_of(options: ConvertedOptions) -> Path:
    """The adapter that the options name, or the one in the package."""
    return landmark.adapter_path() if options.adapter is None else options.adapter


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """A question in the chat template, up to where the reply begins."""
    message = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))


def template(tokenizer: Any, text: str) -> Tensor:
    """Ids of a part of a chat template, in which special tokens are special; in texts they are text."""
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)


def greedy(model: PreTrainedModel, ids: Tensor, count: int) -> list[int]:
    """At most `count` tokens that an unconverted model decodes greedily after `ids [N]`, with full attention."""
    given = ids[None].to(model.device)
    out = model.generate(  # type: ignore[operator]
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=model.config.eos_token_id,
    )
    return out[0, len(ids) :].tolist()
