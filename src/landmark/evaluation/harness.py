"""`LandmarkLM`: converted models in EleutherAI's lm-evaluation-harness, so that any of its tasks runs on them.

The harness finds models by name in a registry and has no plugins. This module puts "landmark" there, and running it,
`python -m landmark.evaluation.harness`, is the harness's own command line with that model in it.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Unpack, get_type_hints

import torch
from torch import Tensor

from landmark.evaluation.reading import Reading
from landmark.hf import LandmarkCache
from landmark.hf.cache import CacheOptions
from landmark.hf.compat import cache_kwargs
from landmark.hf.model_files import ModelFiles
from landmark.hf.reader import end_tokens
from landmark.hf.tokenizer import quiet_transformers

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise ValueError(f"the harness needs {error.name}: pip install 'landmark-attention[harness]'") from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

NAME = "landmark"
ANSWER_TOKENS = 256  # where a task does not say how many, as in the harness
GENERATION = {"do_sample", "temperature", "until", "max_gen_toks"}
OF_SAMPLING = {"top_k", "top_p"}  # without sampling they change nothing


class LandmarkLM(TemplateLM):
    """A converted model that reads requests of any length, in chunks, through a `LandmarkCache`.

    Nothing is truncated: there is no longest context. Texts of a batch are read side by side, and the result of each is
    that of reading it alone. Logits are computed where they are asked for, a chunk at a time.

    Args:
        pretrained: a converted model, or with an adapter the one before conversion: a folder, a GGUF file or a hub id.
            Default: the model in the package.
        adapter: what converts it, as `landmark.load_adapter` takes it. A GGUF file gets that of the package.
        batch_size: texts that are read side by side.
        device: "cpu", "cuda", "cuda:1", ...; a GPU that is not there is the CPU, since the harness names one unasked.
        cache: settings of reading, the index, and memory budgets: keywords of `LandmarkCache`.

    Raises ValueError for unknown settings, and for those that do not fit the model, before its weights are read.
    """

    tokenizer: Any  # that of transformers, with ids of special tokens of many types

    def __init__(
        self,
        pretrained: str | None = None,
        adapter: str | None = None,
        *,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **cache: Unpack[CacheOptions],
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1 or max_batch_size is not None:
            raise ValueError(
                f"batch_size is {batch_size!r}, max_batch_size {max_batch_size!r}: give a batch_size of 1 or more; none"
                " is found by trial, because memory grows with the texts"
            )
        if unknown := sorted(cache.keys() - get_type_hints(CacheOptions).keys()):
            known = ", ".join(("pretrained", "adapter", *get_type_hints(CacheOptions)))
            raise ValueError(f"model_args has {', '.join(unknown)}: the model {NAME} takes {known}")
        self.batch_size = int(batch_size)
        self.cache_options = cache
        quiet_transformers()
        files = ModelFiles.of(pretrained, adapter)
        LandmarkCache(files.config(), **cache)
        self.tokenizer = files.tokenizer()
        self.model = files.model(self.tokenizer)
        if device is not None and (not device.startswith("cuda") or torch.cuda.is_available()):
            self.model.to(torch.device(device))  # type: ignore[arg-type]
        self._device = self.model.device

    # What the harness asks of a model.

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        for (_, continuation), _, tokens in requests:
            if not tokens:
                raise ValueError(f"the continuation {continuation!r} has no token of its own to score")
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        lengths = [len(context) + len(tokens) for _, context, tokens in requests]
        for batch in self._batches(range(len(requests)), lengths, "loglikelihood", disable_tqdm):
            rows = [requests[index][1] + requests[index][2] for index in batch]
            scores = self._score(rows, [len(requests[index][1]) for index in batch])
            for index, score in zip(batch, scores, strict=True):
                found[index] = score
                self.cache_hook.add_partial("loglikelihood", requests[index][0], score)
        return found

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text behind the prefix token, read as a whole."""
        texts = [request.args[0] for request in requests]
        rows = [[self.prefix_token_id, *self.tok_encode(text, add_special_tokens=False)] for text in texts]
        found = [0.0] * len(rows)
        lengths = [len(row) for row in rows]
        for batch in self._batches(range(len(rows)), lengths, "loglikelihood_rolling", disable_tqdm):
            scores = self._score([rows[index] for index in batch], [1] * len(batch))
            for index, (score, _) in zip(batch, scores, strict=True):
                found[index] = score
                self.cache_hook.add_partial("loglikelihood_rolling", (texts[index],), score)
        return found

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Answers up to a stop sequence, greedy unless a task samples at a temperature."""
        asked: list[Any] = [request.args for request in requests]
        prompts = [self.tok_encode(text) or [self.prefix_token_id] for text, _ in asked]
        alike: dict[str, list[int]] = {}
        for index, (_, settings) in enumerate(asked):
            alike.setdefault(json.dumps(settings, sort_keys=True), []).append(index)
        lengths = [len(prompt) for prompt in prompts]
        found = [""] * len(prompts)
        for settings, indices in alike.items():
            generation = _generation(json.loads(settings))
            for batch in self._batches(indices, lengths, "generate_until", disable_tqdm):
                answers = self._generate([prompts[index] for index in batch], **generation)
                for index, answer in zip(batch, answers, strict=True):
                    found[index] = answer
                    self.cache_hook.add_partial("generate_until", asked[index], answer)
        return found

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no token that ends a text: set its eos_token")
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text whose first token is scored, too."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_gen_toks(self) -> int:
        """Longest answer of a task that does not name one."""
        return ANSWER_TOKENS

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; by default with the special tokens that the tokenizer puts around texts.

        A text that begins with the bos token, as chat templates write it, gets no second one.
        """
        bos = self.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (bos and string.startswith(bos))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache of requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation in the model's chat template."""
        return self.tokenizer.apply_chat_template(  # type: ignore[return-value]
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside results: how the model reads.

        With `selection="per_head"` likelihoods depend on later tokens, which is marked as in other evaluations.
        """
        cache = self._new_cache()
        reading = Reading("landmark", cache.settings.block_size, cache.settings.reading)
        info = {"model_num_parameters": self.model.num_parameters(), "model_dtype": str(self.model.dtype)}
        info |= {"block_size": reading.block_size, **asdict(reading.settings)}
        return info | ({"looks_ahead": True} if reading.looks_ahead else {})

    # Reading.

    def _new_cache(self) -> LandmarkCache:
        return LandmarkCache(self.model.config, **self.cache_options)

    def _batches(
        self, indices: Sequence[int], lengths: Sequence[int], description: str, quiet: bool
    ) -> Iterator[list[int]]:
        """Requests that are read side by side, the longest first: what does not fit memory fails at once."""
        order = sorted(indices, key=lambda index: -lengths[index])
        with tqdm(total=len(order), desc=f"Running {description} requests", disable=quiet) as bar:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                yield batch
                bar.update(len(batch))

    @torch.inference_mode()
    def _score(self, rows: list[list[int]], firsts: list[int]) -> list[tuple[float, bool]]:
        """Of each row the log-likelihood of its tokens from number `firsts[b]` on, and whether all are most likely."""
        cache = self._new_cache()
        ids, real = _padded(rows, self.model.device)
        asked = real & (torch.arange(ids.shape[1]) >= torch.tensor(firsts)[:, None]).to(ids.device)
        predicts = asked.roll(-1, dims=1)  # a token's logits are those before it; the first one is never asked for
        sums = torch.zeros(len(rows), dtype=torch.float64, device=ids.device)
        greedy = torch.ones(len(rows), dtype=torch.bool, device=ids.device)
        for start, stop, inputs in _chunks(ids, real, cache):
            wanted = predicts[:, start:stop].any(0)
            if not wanted.any():
                self.model.base_model(**inputs, **cache_kwargs(self.model.base_model, cache))
                continue
            start += int(wanted.long().argmax())
            logits = self.model(**inputs, **cache_kwargs(self.model, cache), logits_to_keep=stop - start).logits
            targets = ids[:, start + 1 : stop + 1]  # the last token of the text has none
            logits, wanted = logits[:, : targets.shape[1]].float(), asked[:, start + 1 : stop + 1]
            likelihood = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
            sums += likelihood.double().masked_fill(~wanted, 0).sum(1)
            greedy &= ((logits.argmax(-1) == targets) | ~wanted).all(1)
        return list(zip(sums.tolist(), greedy.tolist(), strict=True))

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], count: int, temperature: float, until: list[str]) -> list[str]:
        """Answers of at most `count` tokens, each up to the first of `until`, or to a token that ends a text."""
        cache = self._new_cache()
        before, real = _padded([prompt[:-1] for prompt in prompts], self.model.device)
        for _, _, inputs in _chunks(before, real, cache):
            self.model.base_model(**inputs, **cache_kwargs(self.model.base_model, cache))
        ends = end_tokens(self.model, self.tokenizer.eos_token_id)
        token = torch.tensor([prompt[-1:] for prompt in prompts], device=self.model.device)
        new, answers, unfinished = [[] for _ in prompts], [""] * len(prompts), set(range(len(prompts)))
        for _ in range(count):
            logits = self.model(input_ids=token, **cache_kwargs(self.model, cache)).logits[:, -1].float()
            token = (
                (logits / temperature).softmax(-1).multinomial(1) if temperature else logits.argmax(-1, keepdim=True)
            )
            for row in sorted(unfinished):
                if (chosen := int(token[row])) in ends:
                    unfinished.remove(row)
                    continue
                new[row].append(chosen)
                answers[row] = str(self.tokenizer.decode(new[row], skip_special_tokens=True))
                if any(end in answers[row] for end in until):
                    unfinished.remove(row)
            if not unfinished:
                break
        return [postprocess_generated_text(answer, until, None) for answer in answers]


def _generation(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `LandmarkLM._generate` for the settings of a task; raises ValueError for others."""
    settings: dict[str, Any] = dict(normalize_gen_kwargs(given, ANSWER_TOKENS))
    temperature = settings["temperature"] if settings["do_sample"] else 0.0
    if unknown := sorted(settings.keys() - GENERATION - (set() if temperature else OF_SAMPLING)):
        raise ValueError(
            f"the task generates with {', '.join(unknown)}: the model {NAME} takes {', '.join(sorted(GENERATION))};"
            " leave the others out, or set do_sample=False for a greedy answer"
        )
    until = [stop for stop in settings["until"] if stop]
    return {"count": settings["max_gen_toks"], "temperature": temperature, "until": until}


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as ids `[B, N]`, padded at their ends, and where tokens are, `[B, N]`.

    Padded there, rows are cut into chunks at the same columns as each would be alone.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]


def _chunks(ids: Tensor, real: Tensor, cache: LandmarkCache) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """First and last column of each chunk, and the arguments of its forward."""
    for start in range(0, ids.shape[1], cache.chunk_tokens):
        stop = min(start + cache.chunk_tokens, ids.shape[1])
        yield start, stop, {"input_ids": ids[:, start:stop], "attention_mask": real[:, :stop].long()}


# By its path: run as a program, this file is imported once more under its name.
model_registry.register(NAME, target="landmark.evaluation.harness:LandmarkLM")


def main() -> int:
    """Runs the command line of the harness."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ValueError as error:
        print(f"landmark: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
