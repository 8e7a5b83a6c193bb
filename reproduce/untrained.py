"""What conversion alone, without training, does to a model's perplexity.

    python benchmarks/untrained.py MODEL TEXT [--tokens 6000] [--window 2000]

MODEL is an ordinary model: a folder, a hub name or a GGUF file. Prints the perplexity of the first tokens of TEXT in
windows, by the model as it is, converted, and converted and read through memory.
"""

import argparse
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import landmark
from landmark.data.text import read_text
from landmark.hf.compat import cache_kwargs
from landmark.hf.loading import gguf_model, is_gguf, read_tokenizer
from landmark.hf.tokenizer import encode


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--window", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


@torch.no_grad()
def perplexity(windows: list[Tensor], logits_of: Callable[[Tensor], Tensor]) -> float:
    """Of all tokens but the first of each window `[1, T]`."""
    losses = [
        torch.nn.functional.cross_entropy(logits_of(window)[0, :-1].float(), window[0, 1:], reduction="none")
        for window in windows
    ]
    return math.exp(torch.cat(losses).mean())


def main() -> None:
    given = options()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # that it has not learnt landmarks is what is measured here
    load = gguf_model if is_gguf(given.model) else AutoModelForCausalLM.from_pretrained
    model, tokenizer = load(given.model, dtype=torch.float32), read_tokenizer(given.model)
    ids = encode(tokenizer, read_text(given.text)).ids[: given.tokens]
    windows = list(ids[None].split(given.window, 1))
    model.eval()
    print("as it is", perplexity(windows, lambda ids: model(input_ids=ids, use_cache=False).logits), flush=True)
    landmark.convert(model)
    print("converted", perplexity(windows, lambda ids: model(input_ids=ids, use_cache=False).logits), flush=True)

    def read(ids: Tensor) -> Tensor:
        return model(input_ids=ids, **cache_kwargs(model, landmark.LandmarkCache(model.config))).logits

    print("converted, through memory", perplexity(windows, read))


if __name__ == "__main__":
    main()
