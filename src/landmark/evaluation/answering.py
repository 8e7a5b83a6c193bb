"""How a model answers a prompt: through landmarks, or as the baselines do that they are compared with."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import torch
from torch import Tensor

from landmark.evaluation.reading import Reading
from landmark.evaluation.tasks import Prompt
from landmark.hf import LandmarkCache, convert, read
from landmark.hf.compat import cache_kwargs
from landmark.hf.config import is_converted, landmark_settings, trained_positions
from landmark.hf.plain import decode, full_cache, prefill, stretched
from landmark.hf.reader import answer
from landmark.hf.rereading import Rereading, check_reread, in_text_order
from landmark.hf.retrieval_heads import RetrievalHeads
from landmark.hf.tokenizer import encode
from landmark.hf.trace import Span
from landmark.readers.sinks import Sinks
from landmark.settings import ReadingChanges

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Attention = Literal["landmark", "full", "local", "sinks", "none", "yarn"]
SINKS = 4  # Xiao et al. 2023, section 3.2
CHUNK = 512  # tokens of a forward of the baselines


@dataclass(frozen=True)
class Attending:
    """How prompts are attended to.

    - `landmark`, `local`: as the `Reading`s of these names, of a converted model.
    - `none`: as `landmark`, with `retrieve` 0.
    - `full`: to everything before, at true positions. A converted model attends so by its grouped softmax.
    - `sinks`: to the first `SINKS` and the last tokens, `window` together (StreamingLLM).
    - `yarn`: as `full`, with rotary frequencies stretched to the length of the prompt.

    `reading` is None but for those that read through a cache of landmarks. With `landmark`, the `reread` blocks that
    rank highest for a question, by `heads`, are read again in front of it (`landmark.hf.rereading`).
    """

    attention: Attention
    window: int | None = None
    reading: Reading | None = None
    reread: int = 0
    heads: RetrievalHeads | None = None

    @classmethod
    def of(
        cls,
        config: "PretrainedConfig",
        attention: Attention | None = None,
        *,
        window: int | None = None,
        reread: int = 0,
        heads: RetrievalHeads | None = None,
        **reading: Unpack[ReadingChanges],
    ) -> "Attending":
        """What a model with this `config` can do: by default `landmark` if it is converted, else `full`.

        `window` is for `local` and `sinks`, there by default half of the trained range; `heads` are those of `reread`,
        by default those known for the model. Raises ValueError for what does not go together.
        """
        attention = attention or ("landmark" if is_converted(config) else "full")
        _check_model(attention, config)
        if attention in ("full", "sinks", "yarn") and reading:
            raise ValueError(f"attention {attention} has no settings of landmarks: leave out {', '.join(reading)}")
        if heads is not None and not reread:
            raise ValueError("heads rank the blocks that are read again, and reread is 0: give reread 1 or more")
        if reread and attention != "landmark":
            raise ValueError(f"reread ({reread}) is for attention landmark: leave it out")
        if window is not None and attention not in ("local", "sinks"):
            raise ValueError(f"window ({window}) is for attention local and sinks: leave it out")
        if attention == "sinks":
            return cls("sinks", _window_with_sinks(config, window))
        if attention in ("full", "yarn"):
            return cls(attention)
        if attention == "none":
            if opened := reading.get("retrieve"):
                raise ValueError(f"attention none opens no blocks: leave out retrieve ({opened})")
            reading = {**reading, "retrieve": 0}
        if reread:
            check_reread(reread, LandmarkCache(config, **reading))
            heads = RetrievalHeads.of_model(config, heads)
        kind = "local" if attention == "local" else "landmark"
        return cls(attention, window, Reading.of(config, kind, window=window, **reading), reread, heads)

    def check_length(self, config: "PretrainedConfig", length: int) -> None:
        """Raises ValueError where `length` tokens cannot be read so; warns beyond the trained range."""
        if self.reading is not None:
            self.reading.check_length(config, length)
        elif self.attention == "full" and is_converted(config):
            _everything_local(config, length)
        elif self.attention == "full" and length > (trained := trained_positions(config)):
            warnings.warn(f"{length} tokens with full attention: the model was trained on {trained}", stacklevel=2)

    def settings(self) -> dict[str, Any]:
        """What determines answers besides the model, JSON-serializable."""
        reading = (
            {} if self.reading is None else {"block_size": self.reading.block_size, **asdict(self.reading.settings)}
        )
        reading.pop("allow_nonfinite", None)  # changes no answer
        again = {} if self.heads is None else {"reread": self.reread, "heads": self.heads.to_dict()}
        return {"attention": self.attention, "window": self.window, **reading, **again}

    def marks(self) -> dict[str, bool]:
        """What a reader of figures has to know: `looks_ahead` where tokens of a chunk choose blocks together."""
        return {"looks_ahead": True} if self.reading is not None and self.reading.looks_ahead else {}

    def of_length(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", length: int) -> "ReadText":
        """How texts are read in prompts of `length` tokens; `sinks` converts a `model` that is not yet."""
        if self.attention == "yarn":
            return partial(_plainly, stretched(model, length))
        if self.attention == "sinks":
            if not is_converted(model.config):
                convert(model)  # its attention can then be replaced; weights stay
            assert self.window is not None, "set in `of`"
            return partial(_with_sinks, model, self.window)
        if self.attention == "full" and not is_converted(model.config):
            return partial(_plainly, model)
        reading = self.reading or _everything_local(model.config, length)
        if self.heads is not None:
            return partial(_rereading, model, tokenizer, reading, self.reread, self.heads)
        return partial(_through_memory, model, reading)


def _check_model(attention: str, config: "PretrainedConfig") -> None:
    """Raises ValueError for a way to attend that there is not, or not for a model with this `config`."""
    if attention not in get_args(Attention):
        raise ValueError(f"attention is {attention!r}: choose one of {', '.join(get_args(Attention))}")
    if attention in ("landmark", "local", "none") and not is_converted(config):
        raise ValueError(
            f"attention {attention} is for a model with landmarks, and this {config.model_type} has none: give the"
            " adapter of a conversion, or attend with full, sinks or yarn"
        )
    if attention == "yarn" and is_converted(config):
        raise ValueError("attention yarn stretches a model before conversion: give that, without an adapter")


def _window_with_sinks(config: "PretrainedConfig", window: int | None) -> int:
    """The tokens that `sinks` has in sight: as many as are asked for, or half of the trained range."""
    trained = trained_positions(config)
    window = trained // 2 if window is None else window
    if not SINKS < window <= trained:
        raise ValueError(
            f"window is {window}: give more than the {SINKS} sinks and at most the trained range of {trained} positions"
        )
    return window


# Decodes the answer to the question of a prompt, whose text was read; called again, it forgets the question before.
Answer = Callable[[Prompt], list[int]]
# Reads a text `[N]`, calling what it is given with numbers of tokens.
ReadText = Callable[[Tensor, Callable[[int], Any]], Answer]


def _everything_local(config: "PretrainedConfig", length: int) -> Reading:
    """A reading in whose local window `length` tokens are: the attention of training, chunk by chunk."""
    blocks = length // landmark_settings(config).block_size + 1
    try:
        return Reading.of(config, "landmark", retrieve=0, local_blocks=blocks)
    except ValueError as error:
        raise ValueError(f"full attention to {length} tokens and a chunk leaves the trained range ({error})") from error


def _read(model: "PreTrainedModel", reading: Reading, text: Tensor, progress: Callable[[int], Any]) -> LandmarkCache:
    cache = LandmarkCache(model.config, **asdict(reading.settings))
    return read(model, text, cache, chunk_size=reading.chunk_size, progress=progress)


def _through_memory(model: "PreTrainedModel", reading: Reading, text: Tensor, progress: Callable[[int], Any]) -> Answer:
    cache = _read(model, reading, text, progress)
    return lambda prompt: answer(model, prompt.question, cache.fork(), max_new_tokens=prompt.task.answer_tokens)


def _rereading(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    reading: Reading,
    count: int,
    heads: RetrievalHeads,
    text: Tensor,
    progress: Callable[[int], Any],
) -> Answer:
    cache = _read(model, reading, text, progress)
    rereading, gap = Rereading(model, tokenizer, cache, heads), encode(tokenizer, "\n\n", continues=True).ids

    def within_text(span: Span, prompt: Prompt) -> Span:
        """What of it is not the template's; nothing of other spans."""
        start = min(max(span.start, prompt.context.start), span.stop)
        return replace(span, start=start)

    def has_words(span: Span) -> bool:
        words: Any = tokenizer.decode(text[span.start : span.stop])
        return bool(words.strip())

    def answer_to(prompt: Prompt) -> list[int]:
        again = []
        within = (within_text(span, prompt) for span in rereading.spans(prompt.draft.query))
        for span in in_text_order(islice(filter(has_words, within), count)):
            again += [gap, text[span.start : span.stop]]
        asked = torch.cat((*again, prompt.question))
        return answer(model, asked, cache.fork(), max_new_tokens=prompt.task.answer_tokens)

    return answer_to


def _plainly(model: "PreTrainedModel", text: Tensor, progress: Callable[[int], Any]) -> Answer:
    cache = full_cache()
    prefill(model, text, CHUNK, progress, **cache_kwargs(model.base_model, cache))

    def answer_to(prompt: Prompt) -> list[int]:
        if new := cache.get_seq_length() - len(text):
            cache.crop(-new)
        return decode(model, prompt.question, prompt.task.answer_tokens, **cache_kwargs(model, cache))

    return answer_to


def _with_sinks(model: "PreTrainedModel", window: int, text: Tensor, progress: Callable[[int], Any]) -> Answer:
    reader = Sinks(CHUNK, window - SINKS, SINKS)
    prefill(model, text, CHUNK, progress, landmark_reader=reader)
    return lambda prompt: decode(model, prompt.question, prompt.task.answer_tokens, landmark_reader=deepcopy(reader))
