"""`Decoding`: an answer, one forward at a time, so that many answers can take turns on one model, or share forwards."""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import cache_kwargs
from landmark.hf.joined import read_together


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the most likely one at `temperature` 0, otherwise sampled among the likeliest `top_p`.

    `seed` decides what is sampled: the tokens are those of `landmark.hf.reader.answer` after `torch.manual_seed(seed)`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Decoding:
    """Decodes tokens that continue `input_ids [N]`, N > 0, which `cache` has not read yet; `step` is one forward.

    The prompt is prefilled in the chunks of the cache, as `answer` prefills it, so that tokens are the same to the last
    bit, whatever other decodings do between two steps. It ends after `max_new_tokens`, or with a token of `ends`.
    `compute_together` computes the next steps of several.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: LandmarkCache,
        input_ids: Tensor,
        *,
        max_new_tokens: int,
        sampling: Sampling,
        ends: Collection[int],
    ) -> None:
        self.cache = cache
        self.ids: list[int] = []
        self._model = model
        self._unread = input_ids[None].to(model.device)
        self._most = max_new_tokens
        self._ends = frozenset(ends)
        self._sampled = sampling.temperature > 0
        self._random = self._seeded(sampling.seed)
        self._warpers = LogitsProcessorList()
        if self._sampled:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._logits: Tensor | None = None
        self._computed: Tensor | Exception | None = None
        cache.restart_length()

    def _seeded(self, seed: int) -> torch.Generator | None:
        return torch.Generator(self._model.device).manual_seed(seed) if self._sampled else None

    def branch(self, seed: int) -> "Decoding":
        """Another answer to the same prompt, which is not read again; `step` then gives its first token.

        For a decoding that has one token. The answer is that of a decoding made with this seed.
        """
        assert len(self.ids) == 1, "the cache has read the prompt, and no token of the answer"
        other = copy.copy(self)
        other.cache, other.ids, other._random = self.cache.fork(keep_trace=True), [], self._seeded(seed)
        other._computed = self._logits
        return other

    @property
    def decodes(self) -> bool:
        """Whether the prompt is read, so that a step reads one token."""
        return bool(self.ids)

    @property
    def ended(self) -> bool:
        """Whether the last token ends the answer by itself."""
        return bool(self.ids) and self.ids[-1] in self._ends

    @property
    def done(self) -> bool:
        """Whether there is no further token."""
        return self.ended or len(self.ids) >= self._most

    @torch.no_grad()
    def step(self) -> int | None:
        """One forward: a chunk of the prompt that others follow, or the next token, which it returns.

        After `compute_together` it is that one, and an error of it is raised here.
        """
        computed, self._computed = self._computed, None
        if isinstance(computed, Exception):
            raise computed
        if computed is not None:
            return self._next(computed)
        size = self.cache.next_chunk
        if self._unread.shape[1] > size:
            chunk, self._unread = self._unread[:, :size], self._unread[:, size:]
            self._model.base_model(input_ids=chunk, **cache_kwargs(self._model.base_model, self.cache))
            return None
        out = self._model(input_ids=self._unread, logits_to_keep=1, **cache_kwargs(self._model, self.cache))
        return self._next(out.logits[:, -1])

    def _next(self, logits: Tensor) -> int:
        self._logits = logits = logits.float()
        token = self._choose(logits)
        self._unread = token[:, None]
        self.ids.append(int(token))
        return self.ids[-1]

    def _choose(self, logits: Tensor) -> Tensor:
        if not self._sampled:
            return logits.argmax(-1)
        scores = self._warpers(self._unread, logits)  # type: ignore[arg-type]  # they do not look at ids
        return torch.multinomial(scores.softmax(-1), 1, generator=self._random)[:, 0]

    def logprobs(self, most: int) -> tuple[float, list[tuple[int, float]]]:
        """Natural logarithms of the model's probabilities, before temperature: of the last token, and the `most`
        likeliest tokens with theirs."""
        assert self._logits is not None
        logs = self._logits[0].log_softmax(-1)
        top = logs.topk(min(most, len(logs)))
        return float(logs[self.ids[-1]]), list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def compute_together(model: PreTrainedModel, decodings: Sequence[Decoding]) -> None:
    """Computes the next step of `decodings`, which `decodes` holds for, in one forward; `step` then has it.

    Raises nothing: an error is raised by `step`, of one that failed by itself or of all.
    """
    try:
        found = read_together(model, [one.cache for one in decodings], [one._unread for one in decodings])
    except Exception as error:
        found = [error] * len(decodings)
    for one, computed in zip(decodings, found, strict=True):
        one._computed = computed
