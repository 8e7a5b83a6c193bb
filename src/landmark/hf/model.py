"""The class of a converted model: its own, with the few methods that landmarks change."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from types import MethodType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

from landmark.hf.attention import NAME
from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import UnsupportedRelease, cache_argument, rename_cache_argument, require
from landmark.hf.config import Settings, text_config
from landmark.hf.refusals import check_rows_can_be_added

_KIND_OF_CACHE = "cache_implementation"


class LandmarkMixin:
    """What a converted model does otherwise than its own class; everything else is inherited.

    `adopt` puts this in front of the class a model has.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        if not args and not options:  # a copy, whose attributes are set by whoever makes it
            return object.__new__(cls)
        # A new model made of a converted one's class knows nothing of landmarks yet: it is one of the class below.
        plain = original_class(cls)
        model = plain.__new__(plain)
        model.__init__(*args, **options)
        return model

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made in this process: others, and copies, make it again from the one below.
        _, _, *state = super().__reduce_ex__(protocol)
        return _rebuild, (original_class(type(self)),), *state

    def forward(self, *args: Any, **options: Any) -> Any:
        # Not hooks: adapters call this method itself.
        model: Any = self
        _check_rows(model)
        guard_head(model)
        options = rename_cache_argument(model, options)
        caches = [value for value in (*args, *options.values()) if isinstance(value, LandmarkCache)]
        for one in caches:
            one.expect_forward()
        output = super().forward(*args, **options)  # type: ignore[misc]
        for one in caches:
            if not one.was_read():
                name = type(model).__name__
                raise UnsupportedRelease(f"{name} read nothing through the cache it was given, or more than once")
        return _finite_losses(model, output)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As transformers does it, `new_num_tokens` being ordinary tokens: the landmark's row moves behind them.

        The module returned has one row more. Raises ValueError where the row would be lost.
        """
        model: Any = self
        resize = super().resize_token_embeddings  # type: ignore[misc]
        if new_num_tokens is None and pad_to_multiple_of is None:
            return resize()
        config = text_config(model.config)
        settings, ordinary = Settings.of(config), config.vocab_size
        wanted = ordinary if new_num_tokens is None else new_num_tokens
        _check_resizable(model, settings, wanted)
        if not behind_vocabulary(config):
            resize(wanted, pad_to_multiple_of, mean_resizing)
            settle(model, settings)
            return model.get_input_embeddings()
        landmark = [part[ordinary].detach().clone() for part in _rows_of_tokens(model)]
        with _same_random_numbers(model):
            resize(ordinary, mean_resizing=False)
        resize(wanted, pad_to_multiple_of, mean_resizing)
        with _same_random_numbers(model):
            ordinary = len(model.get_input_embeddings().weight)
            resize(ordinary + 1, mean_resizing=False)
        with torch.no_grad():
            for part, row in zip(_rows_of_tokens(model), landmark, strict=True):
                part[ordinary] = row
        settle(model, replace(settings, landmark_id=ordinary))
        return model.get_input_embeddings()

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **options: Any) -> None:
        asked = attn_implementation.values() if isinstance(attn_implementation, dict) else [attn_implementation]
        if any(name != NAME for name in asked):
            raise ValueError(
                f"the attention of a converted model is {NAME!r}, not {attn_implementation!r}: load the model anew and"
                " leave landmark.convert out, or write one without landmarks by reproduce.plain_model.save_plain"
            )
        super().set_attn_implementation(attn_implementation, *args, **options)  # type: ignore[misc]

    def set_input_embeddings(self, value: nn.Module) -> None:
        model: Any = self
        rows, given = len(model.get_input_embeddings().weight), len(value.weight)  # type: ignore[arg-type]
        # transformers resizes in place, and then sets what is there already.
        if value is not model.get_input_embeddings() and given != rows:
            raise ValueError(_wrong_embeddings(given, rows))
        super().set_input_embeddings(value)  # type: ignore[misc]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        model: Any = self
        _check_head(model, new_embeddings)
        super().set_output_embeddings(new_embeddings)  # type: ignore[misc]
        guard_head(model)

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        """Saves the model so that only `landmark.from_pretrained` loads it.

        A folder's configuration counts ordinary tokens, one less than the embeddings have rows: transformers refuses
        the sizes, where it would give a model that reads its landmark as a token and knows no blocks.
        """
        model: Any = self
        config = text_config(model.config)
        if behind_vocabulary(config):
            super().save_pretrained(*args, **options)  # type: ignore[misc]
            return
        rows, settings = config.vocab_size, config.landmark
        config.vocab_size, config.landmark = rows - 1, settings | {"rows": rows}
        try:
            super().save_pretrained(*args, **options)  # type: ignore[misc]
        finally:
            config.vocab_size, config.landmark = rows, settings

    def prepare_inputs_for_generation(self, *args: Any, **options: Any) -> dict[str, Any]:
        # Not the class's own: some decide about the cache (Phi-3 drops it beyond the range of its first training).
        return GenerationMixin.prepare_inputs_for_generation(self, *args, **options)  # type: ignore[arg-type]

    def generate(self, inputs: Tensor | None = None, **options: Any) -> Any:
        """As every model's; the cache may be called `past_key_values` or `cache`, whatever the release.

        Raises ValueError for a prompt that does not begin with the tokens which the cache counts as read, and for
        another kind of cache.
        """
        model: Any = self
        options = rename_cache_argument(model, options)
        asked = [options.get(_KIND_OF_CACHE), getattr(options.get("generation_config"), _KIND_OF_CACHE, None)]
        if set(asked) - {None, "dynamic"}:
            raise ValueError(
                f"cache_implementation is {asked[0] or asked[1]!r}: a converted model reads through a"
                " landmark.LandmarkCache, whose device_budget and host_budget say what stays in memory; leave"
                " cache_implementation out"
            )
        # A stored wish for another kind of cache (Gemma has one) cannot be met.
        model.generation_config.cache_implementation = None
        prompt = options.get("input_ids") if inputs is None else inputs
        cache = options.get(cache_argument(model))
        if isinstance(cache, LandmarkCache) and isinstance(prompt, Tensor):
            cache.check_continues(prompt)
        return super().generate(inputs, **options)  # type: ignore[misc]


def adopt(model: PreTrainedModel) -> None:
    """Gives `model` the methods of `LandmarkMixin`; nothing happens where it has them."""
    if isinstance(model, LandmarkMixin):
        return
    model.__class__ = landmark_class(type(model))
    if "_old_forward" in vars(model):  # what the hooks of accelerate call, made of the class before
        model._old_forward = MethodType(type(model).forward, model)  # type: ignore[assignment]


@cache
def landmark_class(plain: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """`plain` with `LandmarkMixin` in front, one class for each.

    It keeps name and module: transformers looks both up, for losses, saved architectures and attention functions.
    """
    names: dict[str, Any] = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    methods = {name: _with_signature(plain, name) for name in ("forward", "generate", "prepare_inputs_for_generation")}
    return type(plain.__name__, (LandmarkMixin, plain), names | methods)


def _with_signature(plain: type[PreTrainedModel], name: str) -> Any:
    """The mixin's method under the signature of the model's own: transformers asks which arguments it takes."""
    ours = getattr(LandmarkMixin, name)

    @wraps(getattr(plain, name))
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return ours(self, *args, **options)

    return method


def original_class(adopted: type) -> type[PreTrainedModel]:
    """The class below `LandmarkMixin`."""
    bases = adopted.__mro__
    return bases[bases.index(LandmarkMixin) + 1]


def _rebuild(plain: type[PreTrainedModel]) -> Any:
    return object.__new__(landmark_class(plain))


def behind_vocabulary(config: PretrainedConfig) -> bool:
    """Whether the landmark's row comes after those of all ordinary tokens, which `vocab_size` counts.

    Otherwise it is one among them, which was chosen for it, and `vocab_size` counts it too.
    """
    return config.landmark["landmark_id"] >= config.vocab_size


def saved_rows(config: PretrainedConfig) -> int:
    """Rows of the embeddings that belong to a converted model's configuration, whether it is in use or was saved."""
    return config.landmark.get("rows", max(config.vocab_size, config.landmark["landmark_id"] + 1))


def settle(model: PreTrainedModel, settings: Settings) -> None:
    """Writes down which row is the landmark's and how many tokens are ordinary, and keeps the logits to these."""
    base: Any = model.base_model
    config, rows = text_config(model.config), len(base.get_input_embeddings().weight)
    ordinary = rows - 1 if settings.landmark_id == rows - 1 else rows
    config.landmark = settings.to_dict()
    config.vocab_size = ordinary
    if hasattr(model, "vocab_size"):
        model.vocab_size = ordinary  # type: ignore[assignment]
    guard_head(model, anew=True)


@dataclass(frozen=True)
class OrdinaryLogits:
    """Behind the output embeddings, of as many rows as the input's: the landmark is never predicted.

    Where its row is the last, the logits end before it. A row among ordinary ones gets the lowest number.
    """

    landmark_id: int
    rows: int

    def __call__(self, head: nn.Module, args: tuple, logits: Tensor) -> Tensor:
        columns, last = logits.shape[-1], self.landmark_id == self.rows - 1
        if columns != self.rows and not (last and columns == self.landmark_id):
            raise ValueError(_wrong_head(columns, self.rows))
        if last:
            return logits[..., : self.landmark_id].contiguous()
        logits[..., self.landmark_id] = torch.finfo(logits.dtype).min
        return logits


def guard_head(model: PreTrainedModel, *, anew: bool = False) -> None:
    """Keeps landmarks out of the logits by one hook on the head, whoever has replaced or wrapped it."""
    head: Any = model.get_output_embeddings()
    if not anew and any(isinstance(hook, OrdinaryLogits) for hook in head._forward_hooks.values()):
        return
    _check_head(model, head)
    for part in head.modules():  # a wrapper adds to what is inside it, where nothing must be missing yet
        for key, hook in list(part._forward_hooks.items()):
            if isinstance(hook, OrdinaryLogits):
                del part._forward_hooks[key]
    config = text_config(model.config)
    head.register_forward_hook(OrdinaryLogits(config.landmark["landmark_id"], saved_rows(config)))


def _check_rows(model: PreTrainedModel) -> None:
    """Raises ValueError where somebody has replaced the embeddings by others of which the landmark has no row."""
    rows, wanted = getattr(model.get_input_embeddings(), "num_embeddings", None), saved_rows(text_config(model.config))
    if rows is not None and rows != wanted:
        raise ValueError(_wrong_embeddings(rows, wanted))


def _wrong_embeddings(given: int, rows: int) -> str:
    return (
        f"embeddings of {given} rows for a converted model of {rows}, the landmark's among them: give as many, or"
        " change their number with resize_token_embeddings"
    )


def _check_head(model: PreTrainedModel, head: Any) -> None:
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if isinstance(head, nn.Linear) and head.out_features != rows:
        raise ValueError(_wrong_head(head.out_features, rows))


def _wrong_head(given: int, rows: int) -> str:
    return (
        f"a head of {given} rows for a converted model whose embeddings have {rows}, the landmark's among them: give as"
        " many (the landmark's never reaches the logits), or change both with resize_token_embeddings"
    )


# How far below all others together a logit is that must count for nothing and yet have a logarithm: exp(-100) is less
# than float32 tells from 0, and losses that average over the vocabulary stay close to those of ordinary tokens.
_FAR_BELOW = 100.0


def _finite_losses(model: PreTrainedModel, output: Any) -> Any:
    """Lifts the logit of a landmark among ordinary rows so that label smoothing and its like stay finite.

    Its log-probability is the same everywhere, so no gradient comes from it.
    """
    config = text_config(model.config)
    if behind_vocabulary(config):
        return output
    chosen = torch.arange(config.vocab_size) == config.landmark["landmark_id"]

    def lifted(logits: Tensor) -> Tensor:
        column = chosen.to(logits.device)
        others = logits.masked_fill(column, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.where(column, others - _FAR_BELOW, logits)

    if isinstance(output, tuple):
        place = 0 if output[0].dim() else 1  # behind the loss
        return (*output[:place], lifted(output[place]), *output[place + 1 :])
    output.logits = lifted(output.logits)
    return output


def check_tokens(config: PretrainedConfig, ids: Tensor, real: Tensor) -> None:
    """Raises ValueError where `ids [B,T]` has the landmark's row, or one behind it, as an ordinary token.

    Padding, where `real [B,T]` is False, may be anything. On a GPU, which this does not wait for, the kernel fails as
    it does for ids that no row belongs to.
    """
    landmark_id = config.landmark["landmark_id"]
    foreign = (ids >= landmark_id if behind_vocabulary(config) else ids == landmark_id) & real
    require(
        ~foreign,
        f"ids of the landmark ({landmark_id}) among ordinary tokens: after tokens were added to a tokenizer, call"
        " model.resize_token_embeddings(len(tokenizer)); a text must not name a landmark",
    )


_TOLD: WeakSet[nn.Module] = WeakSet()  # base models whose readers were warned


def warn_untrained(base: nn.Module) -> None:
    """Says once, of a model that was not trained with landmarks, that it does not know what to do with memory."""
    config: Any = text_config(base.config)  # type: ignore[arg-type]
    if config.landmark.get("trained_tokens") != 0 or base in _TOLD:
        return
    _TOLD.add(base)
    warnings.warn(
        f"this {config.model_type} model has not learnt landmarks, so what it says of a text read through memory is"
        " worth little: train it with `landmark train --model MODEL --texts FILES --out RUN` (docs/finetuning.md); if"
        " it was trained otherwise, say so with landmark.convert(model, trained_tokens=N)",
        stacklevel=3,
    )


def _rows_of_tokens(model: PreTrainedModel) -> list[Tensor]:
    """What has a row for each token: embeddings, and the head's weights and biases."""
    parts: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = [part.weight for part in parts]
    return found if getattr(parts[1], "bias", None) is None else [*found, parts[1].bias]


def _check_resizable(model: PreTrainedModel, settings: Settings, wanted: Any) -> None:
    config = text_config(model.config)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise ValueError(f"new_num_tokens is {wanted!r}: give the number of ordinary tokens, 1 or more")
    if not behind_vocabulary(config) and wanted <= settings.landmark_id:
        raise ValueError(
            f"{wanted} rows would leave out the landmark's, {settings.landmark_id}: keep at least one more"
        )
    check_rows_can_be_added(model)


@contextmanager
def _same_random_numbers(model: PreTrainedModel) -> Iterator[None]:
    """What is drawn in here is drawn again after it: only new tokens' rows use up random numbers."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
