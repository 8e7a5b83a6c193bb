"""Any order of what may be done to contexts, against a model that only knows what each holds."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from made import HEADER, LAYOUT, Content, add, check, commit, names, short_segments

from landmark.contexts.either import find, info
from landmark.contexts.folder import delete, fork
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create, open_writer

SEEDS = st.lists(st.integers(0, 50), max_size=4).map(tuple)


class Contexts(RuleBasedStateMachine):
    """Up to three contexts, any of which may be open for writing."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.held = {}  # committed
        self.growing = {}  # the writer, and what it holds beyond
        self.made = 0
        self.segments = short_segments(3)
        self.segments.__enter__()

    def teardown(self):
        for writer, _ in self.growing.values():
            writer.close()
        self.segments.__exit__(None, None, None)
        shutil.rmtree(self.root)

    def pick(self, draw, names):
        return draw.draw(st.sampled_from(sorted(names)))

    @precondition(lambda self: len(self.held) < 3)
    @rule()
    def create(self):
        name = f"context {self.made}"
        self.made += 1
        self.growing[name] = create(self.root / name, HEADER, LAYOUT), Content()
        self.held[name] = Content()

    @precondition(lambda self: self.held.keys() - self.growing.keys())
    @rule(draw=st.data())
    def open(self, draw):
        name = self.pick(draw, self.held.keys() - self.growing.keys())
        self.growing[name] = open_writer(self.root / name), self.held[name]

    @precondition(lambda self: self.growing)
    @rule(draw=st.data(), documents=SEEDS, blocks=SEEDS)
    def add(self, draw, documents, blocks):
        name = self.pick(draw, self.growing)
        writer, now = self.growing[name]
        self.growing[name] = writer, add(writer, now, documents, blocks)

    @precondition(lambda self: self.growing)
    @rule(draw=st.data())
    def commit(self, draw):
        name = self.pick(draw, self.growing)
        writer, now = self.growing[name]
        self.held[name] = commit(writer, now)
        self.growing[name] = writer, self.held[name]

    @precondition(lambda self: self.growing)
    @rule(draw=st.data())
    def close(self, draw):
        self.growing.pop(self.pick(draw, self.growing))[0].close()

    @precondition(lambda self: self.held and len(self.held) < 3)
    @rule(draw=st.data())
    def fork(self, draw):
        name = self.pick(draw, self.held)
        branch = f"context {self.made}"
        self.made += 1
        fork(self.root / name, self.root / branch)
        self.held[branch] = self.held[name]

    @precondition(lambda self: self.held.keys() - self.growing.keys())
    @rule(draw=st.data())
    def delete(self, draw):
        name = self.pick(draw, self.held.keys() - self.growing.keys())
        delete(self.root / name)
        del self.held[name]

    @invariant()
    def all_is_there(self):
        assert [path.name for path in find(self.root)] == sorted(self.held)
        for name, content in self.held.items():
            check(open_reader(self.root / name), content)
            assert verify(self.root / name) == []
            found = info(self.root / name)
            assert (found["documents"], found["blocks"]) == (len(content.documents), len(content.blocks))

    @invariant()
    def writers_show_what_is_committed(self):
        for name, (writer, _) in self.growing.items():
            check(writer, self.held[name])

    @invariant()
    def nothing_else_is_kept(self):
        for name in self.held.keys() - self.growing.keys():
            opened = open_writer(self.root / name)
            opened.close()
            segments = {f"segments/{s.path(k).name}" for s in opened.segments for k in s.entry.sizes(LAYOUT)}
            state = {opened.manifest.state_name} if opened.manifest.state else set()
            assert names(self.root / name) == {"manifest.json", "lock"} | segments | state


Contexts.TestCase.settings = settings(max_examples=12, stateful_step_count=15)
TestContexts = Contexts.TestCase
