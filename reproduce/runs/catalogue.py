"""The experiments of the report in their order: the main comparisons of the paper come first."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from reproduce.runs import perplexities as read
from reproduce.runs.perplexities import Row
from reproduce.runs.setup import Scale
from reproduce.runs.trainings import Training
from reproduce.tables import names

JUMPS = 400  # largest, so that positions reach as far in training as 4,096 tokens do
BLOCK_DROPOUT = 0.1
CONTROL_WINDOWS = (64, 128)  # about a block, and two
THRESHOLDS = (0.01, 0.03, 0.1, 0.3)
# Blocks opened for each block size, so that about as many keys are read; and chunks of whole blocks near 250 tokens.
BLOCK_SIZES = {15: (8, 240), 31: (4, 248), 50: (2, 250), 63: (2, 252), 127: (1, 254)}
MOST_OPENED = 15  # the block size at which 16 blocks fit the trained range


@dataclass(frozen=True)
class Experiment:
    """A training and the perplexity rows of its model."""

    training: Training
    rows: tuple[Row, ...]

    def of_tables(self, tables: Collection[str]) -> "Experiment":
        """The same with its rows of these tables."""
        return Experiment(self.training, tuple(row for row in self.rows if row.table in tables))


def experiments(scale: Scale) -> Iterator[Experiment]:
    """All of them, headline first."""
    for seed in scale.seeds:
        for corpus in ("books", "math") if seed == 0 else ("books",):
            yield Experiment(Training(corpus, "landmark", seed), _landmark_rows())
            yield Experiment(Training(corpus, "full", seed), _full_rows())
            yield Experiment(Training(corpus, "recurrent", seed), _recurrent_rows())
            if corpus == "books":
                yield Experiment(Training(corpus, "landmark", seed), _more_of_landmark(seed))
    yield from _variants()
    for size in BLOCK_SIZES:
        yield Experiment(Training("books", block_size=size), _block_size_rows(size))
    yield Experiment(Training("books", "knn"), tuple(read.memorizing(names.LANGUAGE_MODELING, n) for n in (2048, 4096)))
    yield from _controls(scale)


def _landmark_rows() -> tuple[Row, ...]:
    table = names.LANGUAGE_MODELING
    return (
        *(read.landmark(table, length, k) for length in (512, 2048, 4096) for k in (2, 4)),
        read.landmark(table, 2048, 2, local=350),
        read.landmark(table, 2048, 3, local=300),
        read.landmark(table, 2048, 4, max_blocks=20),
        read.landmark(table, 4096, 4, max_blocks=40),
    )


def _more_of_landmark(seed: int) -> tuple[Row, ...]:
    rows = [
        read.landmark(names.SELECTION, length, k, selection=selection)
        for length, k in ((2048, 2), (2048, 4), (4096, 4))
        for selection in ("per_token_and_head", "per_head", "per_token")
    ]
    if seed == 0:
        rows += [*_miss_rows(), read.true_positions(4096, 4, names.LANDMARK), _stingy(names.LANDMARK)]
        rows += [*_by_length_and_k(names.TRAINING_MEMORY), *_by_length_and_k(names.BLOCK_DROPOUT)]
        rows += [_beside_window(names.LANDMARK, length) for length in (2048, 4096)]
    return tuple(rows)


def _full_rows() -> tuple[Row, ...]:
    table = names.LANGUAGE_MODELING
    sinks = (read.sinks(table, length) for length in (2048, 4096))
    return (read.full(table), read.full(table, 360), *sinks)


def _recurrent_rows() -> tuple[Row, ...]:
    return tuple(read.transformer_xl(names.LANGUAGE_MODELING, length) for length in (512, 2048, 4096))


def _miss_rows() -> list[Row]:
    rows = [read.landmark(names.MISS_GATE, 2048, 4)]
    return rows + [
        read.landmark(names.MISS_GATE, 2048, 4, method=names.WITH_MISS_GATE, miss_threshold=threshold)
        for threshold in THRESHOLDS
    ]


def _by_length_and_k(table: str, method: str = names.LANDMARK) -> tuple[Row, ...]:
    return tuple(read.landmark(table, length, k, method=method) for length in (2048, 4096) for k in (2, 4))


def _stingy(method: str) -> Row:
    return read.landmark(names.POSITIONS, 4096, 4, method=method).with_settings(positions="stingy")


def _beside_window(method: str, length: int) -> Row:
    """Blocks of memory beside a recurrent window of five blocks."""
    return read.landmark(names.TRAINING_MEMORY, length, 2, method=method, local=100, local_blocks=5)


def _variants() -> Iterator[Experiment]:
    jumps = Training("books", changes={"jumps": JUMPS})
    yield Experiment(jumps, (_stingy(names.WITH_JUMPS), read.true_positions(4096, 4, names.WITH_JUMPS)))
    dropped = {"block_dropout": BLOCK_DROPOUT}
    rows = _by_length_and_k(names.BLOCK_DROPOUT, names.WITH_BLOCK_DROPOUT)
    yield Experiment(Training("books", changes=dropped), tuple(row.with_settings(**dropped) for row in rows))
    rows = _by_length_and_k(names.TRAINING_MEMORY, names.WITH_MEMORY)
    yield Experiment(Training("books", "landmark_retrieval"), rows)
    recurrent = tuple(_beside_window(names.WITH_RECURRENCE, length) for length in (2048, 4096))
    yield Experiment(Training("books", "landmark_recurrent"), recurrent)


def _controls(scale: Scale) -> Iterator[Experiment]:
    """What else an advantage of landmark attention may come from: local attention, short windows, extra tokens.

    The rows of one training are all of one model, also where another table has the same setting.
    """
    table = names.CONTROLS
    for seed in scale.seeds:
        for corpus in ("books", "math") if seed == 0 else ("books",):
            rows = [read.landmark(table, length, k) for length in (512, 2048, 4096) for k in (0, 4)]
            if corpus == "books":
                rows += _in_parts(read.landmark(table, 512, 0), read.landmark(table, 512, 2))
            yield Experiment(Training(corpus, "landmark", seed), tuple(rows))
        yield Experiment(Training("books", "full", seed), _in_parts(_trained_on(512)))
        for window in CONTROL_WINDOWS:
            training = Training("books", "full", seed, changes={"window": window})
            yield Experiment(training, _in_parts(_trained_on(window)))
        plain = Training("books", "landmark", seed, changes={"gates": False})
        yield Experiment(plain, _in_parts(read.plain_tokens(table)))


def _trained_on(window: int) -> Row:
    """Full attention over windows as long as those of training."""
    return read.full(names.CONTROLS, window).with_settings(window=window)


def _in_parts(*rows: Row) -> tuple[Row, ...]:
    return tuple(row.with_targets(targets) for row in rows for targets in (names.FIRST_BLOCK, names.BEHIND_IT))


def _block_size_rows(size: int) -> tuple[Row, ...]:
    retrieve, local = BLOCK_SIZES[size]
    settings = {"block_size": size, "blocks": 4096 // size}
    rows = [read.landmark(names.BLOCK_SIZE, 4096, retrieve, local=local).with_settings(**settings)]
    if size == MOST_OPENED:
        rows += [read.landmark(names.RETRIEVE, 4096, k, local=225).with_settings(**settings) for k in (1, 2, 4, 8, 16)]
    return tuple(rows)
