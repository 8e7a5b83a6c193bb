"""Tokenization of texts as data, for reading, prompts, training and evaluation.

Names of special tokens in a text stay text, truncation and padding of a tokenizer.json are ignored, and a long text is
tokenized in pieces with the same result as in one.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from landmark.data import text as texts

OVERLAP = 1024  # characters; two windows overlap by two to three times as many
AGREEING = 8  # tokens on each side of a join at which both windows must agree
# A byte-fallback token: some tokenizer files declare these special too.
BYTE = re.compile("<0x[0-9A-F]{2}>")
# Characters put before a text to tokenize it as a continuation: one of them does not merge with its first token.
ANCHORS = ("\n", ".", "a", "0", "\u00b7", "\U0010ffff")


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text: `ids [N]` int64, and `offsets [N,2]` int64, the characters (start, stop) of each."""

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Tokens":
        return Tokens(self.ids[part], self.offsets[part])

    @cached_property
    def boundaries(self) -> np.ndarray:
        """Indices of tokens at whose start a text can be cut: no token before overlaps any token after.

        Others are bytes of a character, or spaces whose offsets the tokenizer trims.
        """
        first, last = self.offsets[:, 0], self.offsets[:, 1]
        before = np.maximum.accumulate(np.maximum(last, first + 1))[:-1]
        after = np.minimum.accumulate(first[::-1])[::-1][1:]
        return np.flatnonzero((before <= first[1:]) & (first[1:] <= after)) + 1

    def boundary(self, character: int) -> int | None:
        """The boundary whose token begins at `character`, if any."""
        index = int(np.searchsorted(self.offsets[self.boundaries, 0], character))
        found = int(self.boundaries[index]) if index < len(self.boundaries) else None
        return found if found is not None and self.offsets[found, 0] == character else None


@dataclass(frozen=True)
class _Window:
    """The characters `start:stop` of a text, tokenized alone.

    `begins [N]` (bool) marks tokens that begin a word of the pre-tokenizer.
    """

    start: int
    stop: int
    tokens: Tokens
    begins: np.ndarray

    def boundaries(self, low: int, high: int) -> np.ndarray:
        """Boundaries of tokens that begin at the characters `low:high`."""
        found = self.tokens.boundaries
        first = self.tokens.offsets[found, 0]
        return found[(first >= low) & (first < high)]

    def around(self, character: int) -> np.ndarray | None:
        """Ids, offsets and word starts of the tokens around a boundary at `character`; None if there are too few."""
        index = self.tokens.boundary(character)
        if index is None or index < AGREEING or index + AGREEING > len(self.tokens):
            return None
        near = slice(index - AGREEING, index + AGREEING)
        return np.column_stack((self.tokens.ids[near], self.tokens.offsets[near], self.begins[near]))


class TextEncoder:
    """Tokenizes texts with a copy of `tokenizer`, whose later changes have no effect.

    With `template`, its input is part of a chat template, whose special tokens are special. Raises ValueError for a
    text that the tokenizer's model turns into a special token.
    """

    def __init__(self, tokenizer: Tokenizer, *, template: bool = False) -> None:
        self._original = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special and not BYTE.fullmatch(token.content)}
        self._special = np.array([] if template else sorted(special - _unknown(tokenizer.model)), np.int64)
        self._tokenizer = _for_texts(tokenizer, tokenizer.model, added)
        self._tokenizer.encode_special_tokens = not template

    def encode(self, text: str, *, continues: bool = False) -> Tokens:
        """The tokens of `text` without special tokens; with `continues`, as the continuation of another text.

        Many tokenizers add or strip a space at the beginning of a text, which is wrong within one.
        """
        if continues and text and self._changes_beginnings:
            return self._behind(text)
        parts = list(self.pieces(text))
        return Tokens(np.concatenate([p.ids for p in parts]), np.concatenate([p.offsets for p in parts]))

    def pieces(self, text: str) -> Iterator[Tokens]:
        """The tokens of `text` in pieces of about `PIECE_CHARACTERS` characters.

        Overlapping windows are joined where they agree, and enlarged where they do not.
        """
        left, first = self._window(text, 0, texts.PIECE_CHARACTERS), 0
        while left.stop < len(text):
            joined = self._joined(text, left)
            if joined is None:
                left = self._window(text, left.start, left.stop + (left.stop - left.start))
                continue
            right, cut, follows = joined
            yield left.tokens[first:cut]
            left, first = right, follows
        yield left.tokens[first:]

    def _joined(self, text: str, left: _Window) -> tuple[_Window, int, int] | None:
        """The next window, the end of `left` and its own start at the join; None if they agree nowhere."""
        start = _beginning(left)
        if start is None:
            return None
        right = self._window(text, start, start + texts.PIECE_CHARACTERS)
        # A window with another end: what depends on the end, like digits grouped from the right, differs here.
        control = self._window(text, start, left.stop + 1)
        for cut in left.boundaries(left.stop - 3 * OVERLAP // 2, left.stop - OVERLAP // 2):
            character = int(left.tokens.offsets[cut, 0])
            here, *others = (window.around(character) for window in (left, right, control))
            if here is not None and all(other is not None and np.array_equal(here, other) for other in others):
                follows = right.tokens.boundary(character)
                assert follows is not None
                return right, int(cut), follows
        return None

    def _window(self, text: str, start: int, stop: int) -> _Window:
        stop = min(stop, len(text))
        found = self._checked(text[start:stop])
        ids = np.array(found.ids, np.int64)
        offsets = np.array(found.offsets, np.int64).reshape(-1, 2) + start
        words = np.array([-1 if word is None else word for word in found.word_ids], np.int64)
        return _Window(start, stop, Tokens(ids, offsets), np.diff(words, prepend=-1) != 0)

    def _checked(self, text: str) -> Any:
        """The encoding of `text`, checked to hold no special token."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        if not np.isin(found.ids, self._special).any():
            return found
        found = self._without_special.encode(text, add_special_tokens=False)
        read = np.array(found.ids)[np.isin(found.ids, self._special)]
        if len(read):
            name = self._original.id_to_token(int(read[0]))
            raise ValueError(
                f"the tokenizer reads {name!r} in a text as its special token {int(read[0])}: "
                "make it a token of its own that texts do not hold"
            )
        return found

    @cached_property
    def _without_special(self) -> Tokenizer:
        """For models whose vocabulary has special tokens as words: these get names that no text holds."""
        model = json.loads(self._original.to_str())["model"]
        added = self._original.get_added_tokens_decoder()
        names = {added[number].content: f"\0 {number} \0" for number in self._special.tolist()}
        if isinstance(model["vocab"], dict):
            made = {"".join(pair if isinstance(pair, list) else pair.split(" ")) for pair in model.get("merges", ())}
            names = {name: other for name, other in names.items() if name in model["vocab"] and name not in made}
            model["vocab"] = {names.get(word, word): number for word, number in model["vocab"].items()}
        else:
            known = {word for word, _ in model["vocab"]}
            names = {name: other for name, other in names.items() if name in known}
            model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
        renamed = Tokenizer.from_str(json.dumps(_bare({}) | {"model": model})).model
        return _for_texts(self._original, renamed, {number: _renamed(token, names) for number, token in added.items()})

    @cached_property
    def _changes_beginnings(self) -> bool:
        return any(
            _changes_beginnings(_state(part)) for part in (self._tokenizer.normalizer, self._tokenizer.pre_tokenizer)
        )

    def _behind(self, text: str) -> Tokens:
        for anchor in ANCHORS:
            tokens = self.encode(anchor + text)
            begins = tokens.offsets[:, 0] >= len(anchor)
            cut = int(begins.argmax()) if begins.any() else len(tokens)
            if cut and begins[cut:].all() and tokens.offsets[:cut, 1].max() <= len(anchor):
                return Tokens(tokens.ids[cut:], tokens.offsets[cut:] - len(anchor))
        raise ValueError(
            f"the tokenizer merges {text[:20]!r} with any character before it: begin with another character"
        )


def _beginning(window: _Window) -> int | None:
    """The character near the end of `window` at which the next one begins: the start of a word if there is any."""
    found = window.boundaries(window.stop - 3 * OVERLAP, window.stop - 2 * OVERLAP)
    for choices in (found[window.begins[found]], found):
        if len(choices):
            return int(window.tokens.offsets[choices[0], 0])
    return None


def _for_texts(tokenizer: Tokenizer, model: Any, added: dict[int, AddedToken]) -> Tokenizer:
    """A copy of `tokenizer` without truncation and padding, whose special tokens do not match text."""
    parts = {name: _state(getattr(tokenizer, name)) for name in ("normalizer", "pre_tokenizer", "post_processor")}
    other = Tokenizer.from_str(json.dumps(_bare(parts)))
    other.model = model
    other.add_tokens([added[number] for number in sorted(added)])
    if {number: token.content for number, token in other.get_added_tokens_decoder().items()} != {
        number: token.content for number, token in added.items()
    }:
        raise ValueError("the ids of the tokenizer's added tokens are not consecutive: save and load it again")
    other.encode_special_tokens = True
    return other


def _bare(parts: dict[str, Any]) -> dict[str, Any]:
    """A serialized tokenizer with these parts and an empty vocabulary."""
    empty = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "decoder": None}
    others = {"normalizer": None, "pre_tokenizer": None, "post_processor": None}
    return empty | others | parts | {"model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}


def _state(part: Any) -> Any:
    """A component of a tokenizer, serialized."""
    return None if part is None else json.loads(part.__getstate__())


def _renamed(token: AddedToken, names: dict[str, str]) -> AddedToken:
    if token.content not in names:
        return token
    return AddedToken(names[token.content], special=True, normalized=False)


def _unknown(model: Any) -> set[int]:
    """Ids that a model gives to unknown text."""
    named = model.token_to_id(getattr(model, "unk_token", None) or "")
    try:
        given = {token.id for token in model.tokenize("\U0010ffff")}
    except Exception:  # any error of tokenizers if there is no such id
        given = set()
    return given if named is None else given | {named}


def _changes_beginnings(state: Any) -> bool:
    """Whether a normalizer or pre-tokenizer treats the beginning of a text differently."""
    if isinstance(state, list):
        return any(map(_changes_beginnings, state))
    if not isinstance(state, dict):
        return False
    kind = state.get("type")
    return (
        kind == "Prepend"
        or (kind == "Metaspace" and state.get("prepend_scheme", "always") != "never")
        or (kind == "ByteLevel" and bool(state.get("add_prefix_space")))
        or (kind == "Strip" and bool(state.get("strip_left")))
        or any(_changes_beginnings(value) for value in state.values())
    )
