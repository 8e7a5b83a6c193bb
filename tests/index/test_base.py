"""The interface of an index, for each of its kinds, against a plain list of keys."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_cases import recall_of
from torch import Tensor

from landmark.index import exact
from landmark.index.base import Index
from landmark.index.constant import ConstantIndex
from landmark.index.exact import ExactIndex
from landmark.index.hierarchical import HierarchicalIndex


def every_list(rows: int, max_blocks: int | None = None) -> HierarchicalIndex:
    """An IVF index that probes all lists: for this recall no number of queries is enough to calibrate it."""
    return HierarchicalIndex(rows, max_blocks, recall=1 - 1e-7)


KINDS = [ExactIndex, HierarchicalIndex, every_list]
HEADS, GROUP, DIM = 2, 2, 20
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("codes_at_once")


def whole(*shape: int) -> Tensor:
    """Small whole numbers: sums are exact, and equal scores are common."""
    return torch.randint(-1, 2, shape).double()


class Plain:
    """Keys `[HEADS,n,DIM]` of each row, all that ever came."""

    def __init__(self, rows: list[Tensor], max_blocks: int | None = None) -> None:
        self.rows, self.max_blocks = rows, max_blocks

    def append(self, row: int, keys: Tensor) -> None:
        self.rows[row] = torch.cat((self.rows[row], keys), 1)

    def reorder(self, rows: list[int]) -> None:
        self.rows = [self.rows[row] for row in rows]

    def fork(self) -> "Plain":
        return Plain(list(self.rows), self.max_blocks)

    @property
    def counts(self) -> list[int]:
        return [keys.shape[1] for keys in self.rows]

    def kept(self, row: int) -> range:
        count = self.counts[row]
        return range(0 if self.max_blocks is None else max(0, count - self.max_blocks), count)

    def ranked(self, query: Tensor, row: int, head: int, upto: int) -> list[tuple[float, int]]:
        """Score and number of the blocks below `upto` for `query [D]`: highest score first, the newest among equals."""
        scores = (self.rows[row][head // GROUP] @ query).tolist()
        return sorted(((scores[n], n) for n in self.kept(row) if n < upto), reverse=True)


def check(index: Index, plain: Plain, k: int, newest_left_out: int) -> None:
    """Everything that can be asked of an index."""
    rows = len(plain.rows)
    query, upto = whole(rows, HEADS * GROUP, 3, DIM), [max(0, count - newest_left_out) for count in plain.counts]
    scores, numbers = index.search(query, k, upto)
    dense, labels = index.scores(query, upto), index.numbers(CPU)
    for row in range(rows):
        for head in range(HEADS * GROUP):
            for step in range(3):
                ranked = plain.ranked(query[row, head, step], row, head, upto[row])
                assert pairs(scores[row, head, step], numbers[row, head, step]) == ranked[:k]
                assert (numbers[row, head, step] < 0).sum() == max(0, k - len(ranked))
                visible = dense[row, head, step] > -torch.inf
                assert pairs(dense[row, head, step][visible], labels[row][visible]) == ranked
        assert sorted(n for n in labels[row].tolist() if n >= 0) == list(plain.kept(row))
    if all(plain.counts):
        newest = torch.tensor([[count - 1, plain.kept(row)[0], -1] for row, count in enumerate(plain.counts)])
        keys = index.keys(newest)
        for row in range(rows):
            assert torch.equal(keys[row, :, :2], plain.rows[row][:, newest[row, :2]])
        assert keys.isfinite().all()


def pairs(scores: Tensor, numbers: Tensor) -> list[tuple[float, int]]:
    found = zip(scores.tolist(), numbers.tolist(), strict=True)
    return sorted(((s, n) for s, n in found if n >= 0), reverse=True)


def started(kind: Callable[..., Index], rows: int, max_blocks: int | None = None) -> tuple[Index, Plain]:
    return kind(rows, max_blocks), Plain([whole(HEADS, 0, DIM) for _ in range(rows)], max_blocks)


def append(index: Index, plain: Plain, row: int, count: int) -> None:
    keys = whole(HEADS, count, DIM)
    index.append(row, keys)
    plain.append(row, keys)


anything = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)


@pytest.mark.parametrize("kind", KINDS)
@anything
@given(
    parts=st.lists(st.tuples(st.integers(0, 1), st.sampled_from([1, 2, 9, 300])), min_size=1, max_size=6),
    max_blocks=st.sampled_from([None, 1, 3, 8, 400]),
    k=st.integers(1, 5),
    tile=st.sampled_from([40, 1 << 20]),
    newest_left_out=st.integers(0, 3),
)
def test_search_equals_sorting_all_scores(kind, parts, max_blocks, k, tile, newest_left_out):
    index, plain = started(kind, 2, max_blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_TILE_SCORES", tile)
        for row, count in parts:
            append(index, plain, row, count)
            check(index, plain, k, newest_left_out)


@pytest.mark.parametrize("kind", KINDS)
@anything
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 3), st.integers(0, 1), st.sampled_from([1, 5, 270])),
            st.tuples(st.just("fork"), st.integers(0, 3)),
            st.tuples(st.just("reorder"), st.integers(0, 3), st.permutations([0, 1]) | st.just([1, 1])),
        ),
        min_size=1,
        max_size=8,
    ),
    max_blocks=st.sampled_from([None, None, 7]),
)
def test_branches_share_what_they_left_and_nothing_later(kind, steps, max_blocks):
    index, plain = started(kind, 2, max_blocks)
    append(index, plain, 0, 3)
    branches = [(index, plain)]
    for what, which, *rest in steps:
        index, plain = branches[which % len(branches)]
        if what == "append":
            append(index, plain, *rest)
        elif what == "fork":
            branches.append((index.fork(), plain.fork()))
        else:
            index.reorder(*rest)
            plain.reorder(*rest)
        for one in branches:
            check(*one, k=3, newest_left_out=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [[1, 0], [1], [0, 1, 1]])
def test_whoever_reorders_leaves_the_rows_of_others(kind, rows):
    """Beams of a text, of its fork and of a fork of that: each has its rows, in whatever order others take theirs."""
    index, plain = started(kind, 2)
    append(index, plain, 0, 40)
    append(index, plain, 1, 20)
    branch, branch_plain = index.fork(), plain.fork()
    branch.reorder([1, 0])
    branch_plain.reorder([1, 0])
    twig, twig_plain = branch.fork(), branch_plain.fork()
    for one in (index, plain, branch, branch_plain):
        one.reorder(rows)
    append(branch, branch_plain, 0, 3)
    for one in ((index, plain), (branch, branch_plain), (twig, twig_plain)):
        check(*one, k=3, newest_left_out=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_counts_only_bytes_of_its_own(kind):
    index, plain = started(kind, 2)
    append(index, plain, 0, 30)
    append(index, plain, 1, 10)
    branch, branch_plain = index.fork(), plain.fork()
    assert branch.nbytes == 0
    append(branch, branch_plain, 1, 4)
    assert branch.nbytes == 4 * HEADS * DIM * 8
    branch.reorder([0, 1])
    assert branch.nbytes == 4 * HEADS * DIM * 8
    branch.reorder([1, 0])
    assert branch.nbytes >= 44 * HEADS * DIM * 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_blocks", [None, 400])
def test_rows_can_be_reordered_and_repeated(kind, max_blocks):
    index, plain = started(kind, 2, max_blocks)
    append(index, plain, 0, 500)
    append(index, plain, 1, 3)
    check(index, plain, 3, 0)
    for rows in ([1, 0, 1], [2, 1]):
        index.reorder(rows)
        plain.reorder(rows)
        append(index, plain, 0, 2)
        check(index, plain, 3, 0)


def test_bytes_count_what_is_kept():
    index = ExactIndex(2, 4)
    assert index.nbytes == 0
    index.append(0, torch.randn(2, 3, 8))
    index.append(1, torch.randn(2, 9, 8))
    assert index.nbytes == (3 + 4) * 2 * 8 * 4


@pytest.mark.parametrize("max_blocks", [None, 5])
def test_constant_index_equals_exact_index_on_equal_keys(max_blocks):
    key = whole(HEADS, 1, DIM)
    for index in (ConstantIndex(2, max_blocks), ConstantIndex(2, max_blocks).fork()):
        plain = Plain([whole(HEADS, 0, DIM) for _ in range(2)], max_blocks)
        for row, count in enumerate((9, 2)):
            index.append(row, key.expand(-1, count, -1))
            plain.append(row, key.expand(-1, count, -1))
        for newest_left_out in (0, 3):
            check(index, plain, 3, newest_left_out)
        branch, branch_plain = index.fork(), plain.fork()
        branch.append(0, key)
        branch_plain.append(0, key)
        branch.reorder([1, 0, 0])
        branch_plain.reorder([1, 0, 0])
        check(branch, branch_plain, 3, 0)
        check(index, plain, 3, 0)


@pytest.mark.parametrize("recall", [None, 1.0, 0.9])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_key_that_is_not_finite_hides_no_other(recall, form, number):
    keys, query = torch.randn(HEADS, 3000, DIM), torch.randn(1, 2 * HEADS, 20, DIM)
    tainted, cleared = keys.clone(), keys.clone()
    for x, filling in ((tainted, number), (cleared, 0.0)):
        x[:, 1500], x[:, 2990, 1] = filling, filling
    index = ExactIndex(1, keys=form) if recall is None else HierarchicalIndex(1, keys=form, recall=recall)
    exact = ExactIndex(1, keys=form)
    index.append(0, tainted)
    exact.append(0, cleared)
    found, wanted = (one.search(query, 2, [3000])[1].sort(-1).values for one in (index, exact))
    share = recall_of(found, wanted)
    assert share > 0.8 if recall == 0.9 else share == 1
