"""Random sequences of what can be done with a context and its forks in memory, each compared with fresh contexts."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landmark import Context
from landmark.hf.tokenizer import encode

PROMPT = "jim looked at"
WORDS = ["it", "was", "a", "calm", "sea", "and", "jim", "looked", "at", "the", "ships", "for", "0123456789", "."]
STEPS = 12

Group = tuple[tuple[str, str], ...]  # documents, a name and a text each, that were read together


@dataclass
class Branch:
    """A context, or a fork in memory, and what it must hold."""

    context: Context
    read: list[Group] = field(default_factory=list)
    waiting: list[tuple[str, str]] = field(default_factory=list)
    on_disk: bool = False
    closed: bool = False

    @property
    def documents(self) -> list[tuple[str, str]]:
        return [document for group in self.read for document in group] + self.waiting


@torch.no_grad()
def logits(context: Context) -> Tensor:
    """Those of a prompt behind what a context has read, after a fork of its cache."""
    ids = encode(context.tokenizer, PROMPT).ids[None]
    return context.model(input_ids=ids, past_key_values=context.cache.fork()).logits


class Trial:
    """One sequence in the folder `root`; AssertionError where a branch is not as a fresh context would be."""

    def __init__(self, seed: int, model: Any, root: Path) -> None:
        self.random = random.Random(seed)
        self.model, self.root = model, root
        self.fresh: dict[tuple[Group, ...], Tensor] = {}
        self.number = 0
        self.branches = [Branch(Context.create(root / "context", model), on_disk=True)]

    def run(self) -> None:
        for _ in range(STEPS):
            branch = self.random.choice(self.branches)
            action = self.random.choice([self.append, self.append, self.add, self.read, self.fork, self.reopen])
            action(branch)
            self.check(self.random.choice(self.branches))
        for branch in self.branches:
            self.check(branch)
        self.branches[0].context.close()

    def text(self) -> tuple[str, str]:
        self.number += 1
        words = self.random.choices(WORDS, k=self.random.choice([1, 5, 30, 90]))
        return f"text {self.number}", " ".join(words) + " . "

    def append(self, branch: Branch) -> None:
        if not branch.closed:
            name, text = self.text()
            branch.context.append(text, name)
            branch.read.append((*branch.waiting, (name, text)))
            branch.waiting = []

    def add(self, branch: Branch) -> None:
        if not branch.closed:
            document = self.text()
            branch.context.add([document])
            branch.waiting.append(document)

    def read(self, branch: Branch) -> None:
        if not branch.closed:
            branch.context.read()
            if branch.waiting:
                branch.read.append(tuple(branch.waiting))
                branch.waiting = []

    def fork(self, branch: Branch) -> None:
        self.branches.append(Branch(branch.context.fork(), list(branch.read), list(branch.waiting)))

    def reopen(self, branch: Branch) -> None:
        """Closes the context on disk, or opens it again; its forks go on."""
        branch = self.branches[0]
        if branch.closed:
            branch.context = Context.open(self.root / "context", self.model, write=True)
        else:
            branch.context.close()
        branch.closed = not branch.closed

    def check(self, branch: Branch) -> None:
        """That a branch holds its own documents, and reads like a fresh context of them, bit for bit."""
        context = branch.context
        assert [(found.name, context.text(found)) for found in context.documents] == branch.documents
        if branch.read:
            assert torch.equal(logits(context), self.expected(tuple(branch.read)))
        assert context.tokens_read == context.tokens or branch.waiting

    def expected(self, groups: tuple[Group, ...]) -> Tensor:
        if groups not in self.fresh:
            with Context.create(self.root / f"fresh {len(self.fresh)}", self.model) as context:
                for group in groups:
                    context.add(group)
                    context.read()
                self.fresh[groups] = logits(context)
        return self.fresh[groups]
