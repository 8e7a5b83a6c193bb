"""`landmark eval recall`, `landmark eval ruler`: questions about long texts, beside full attention, YaRN and BM25."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes

from landmark.cli.options import LONGEST, NumberOptions, load_either, whole_numbers
from landmark.cli.output import print_escaped, print_table, tokens_read
from landmark.limits import FromZero, MaybeFromOne, OutFile, Range, Seed
from landmark.settings import DEFAULT_BLOCK_SIZE, ReadingChanges

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from landmark.evaluation.answering import Attending
    from landmark.evaluation.asking import Asker, Cell, Sample
    from landmark.evaluation.bm25 import Passages
    from landmark.evaluation.samples import Journal
    from landmark.evaluation.tasks import Group, Prompts
    from landmark.hf.retrieval_heads import RetrievalHeads

FORMS = {"plain": (False,), "chat": (True,), "both": (False, True)}


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Which model answers, and how it attends."""

    model: str | None = None
    """A converted or an ordinary model with its tokenizer: a folder, a GGUF file or a name on the Hugging Face hub;
    default: the one in the package."""
    adapter: Path | None = None
    """Adapter that converts the model, as landmark.load_adapter takes it."""
    attention: Literal["landmark", "full", "local", "sinks", "none", "yarn"] | None = None
    """landmark: through memory; none: the same without opening blocks; local: the last tokens; full: everything at
    once; sinks: the first four tokens and the last ones; yarn: full, with rotary frequencies stretched to the length.
    Default: landmark for a converted model, full for an ordinary one and with --rag."""
    window: MaybeFromOne = None
    """local: last tokens in sight, on average; sinks: all tokens in sight, by default half of the trained range."""
    rag: Literal["bm25"] | None = None
    """Read only the passages that a search engine ranks highest for the question."""
    rag_tokens: MaybeFromOne = None
    """Most tokens of these passages; default: half of the trained range."""
    reread: FromZero = 0
    """With attention landmark, blocks to read again in front of each question, those whose landmarks rank highest for
    it; `landmark chat` reads 5 where it can."""
    heads: Path | None = None
    """JSON file of the heads that rank blocks for --reread, from `landmark eval retrieval --save-heads`; default: those
    known for the model."""
    lengths: str = "4096,8192"
    """Lengths in ordinary tokens, question and answer included, separated by commas."""
    samples: Annotated[int, Range(1, 10**6)] = 50
    """Texts per length, with answers at evenly spaced depths."""
    form: Literal["auto", "plain", "chat", "both"] = "auto"
    """Questions in the model's chat template, or plain; auto: in the template if there is one."""
    haystack: Path | None = None
    """UTF-8 text around what is asked for, repeated as needed; default: the book in the package."""
    seed: Seed = 0
    """Decides what is stated and asked."""
    minutes: Annotated[float | None, Range(0.01)] = None
    """Begin no question after so many minutes; the same command with --out goes on."""
    out: Annotated[Path | None, OutFile()] = None
    """JSON-lines file of all answers, from which the same command resumes, also with other lengths."""
    json: bool = False
    """Print one JSON object per task and length instead of tables."""
    plot: Annotated[Path | None, OutFile()] = None
    """Image of the share of right answers by task, depth and length; needs matplotlib."""
    reading: OmitArgPrefixes[ReadingChanges] = field(default_factory=ReadingChanges)
    """For landmark, none and local; default: the model's own settings."""
    numbers: OmitArgPrefixes[NumberOptions] = field(default_factory=NumberOptions)


@dataclass(frozen=True, kw_only=True)
class RecallOptions(TaskOptions):
    """Questions about facts hidden in long texts: passkeys, named values, several values or names at once, chains of
    variables, facts in sentences, and what is not mentioned."""

    tasks: str = "passkey,named,values,queries,chains,facts,absent"
    """Tasks, separated by commas. A text states the facts of all of them, and is read once for all questions."""


@dataclass(frozen=True, kw_only=True)
class RulerOptions(TaskOptions):
    """The 13 tasks of RULER: needles, variable tracking, common and frequent words, and questions about documents.

    Beside them are tasks beyond literal recall: other words, states that change, order, counts.
    """

    tasks: str = "ruler"
    """Tasks, separated by commas, each about texts of its own: niah_single_1, ..2, ..3, niah_multikey_1, ..2, ..3,
    niah_multivalue, niah_multiquery, vt, cwe, fwe, qa_1, qa_2; other_words, babi_1, ..2, ..3, ..4, ..5, nth, count,
    most. ruler: all of the first list that need no file, or whose file is given; beyond: all of the second."""
    squad: Path | None = None
    """JSON file of SQuAD 2.0 (dev-v2.0.json), for qa_1."""
    hotpotqa: Path | None = None
    """JSON file of HotpotQA (hotpot_dev_distractor_v1.json), for qa_2."""


def run_recall(options: RecallOptions) -> int:
    """Ask the questions of all tasks about each text."""
    haystack = _haystack(options)
    from landmark.evaluation.recall import recall

    return run_tasks(options, [recall(_names(options.tasks))], haystack, {})


def run_ruler(options: RulerOptions) -> int:
    """Ask the questions of each task."""
    haystack = " ".join(_haystack(options).split())  # as the definition has its essays
    from landmark.evaluation import beyond, ruler

    files = {"qa_1": options.squad, "qa_2": options.hotpotqa}
    lists = {
        "ruler": [name for name in ruler.NAMES if name not in files or files[name] is not None],
        "beyond": list(beyond.TASKS),
    }
    names = list(dict.fromkeys(name for given in _names(options.tasks) for name in lists.get(given, [given])))
    for name in names:
        if name not in (known := (*ruler.NAMES, *beyond.TASKS)):
            raise ValueError(f"there is no task {name!r}: choose of {', '.join(known)}")
    for name, file in files.items():
        if file is not None and name not in names:
            raise ValueError(f"{file} is the data set of the task {name}: add {name} to the tasks, or leave it out")
    of_ruler = ruler.groups([name for name in names if name in ruler.NAMES], haystack, files)
    groups = [*of_ruler, *(beyond.group(name) for name in names if name in beyond.TASKS)]
    return run_tasks(options, groups, haystack, {name: file for name, file in files.items() if file is not None})


def _haystack(options: TaskOptions) -> str:
    from landmark.assets import book_path
    from landmark.data.text import read_text

    return read_text(options.haystack or book_path())


def _names(tasks: str) -> list[str]:
    return [name.strip() for name in tasks.split(",")]


def run_tasks(options: TaskOptions, groups: "Sequence[Group]", haystack: str, files: Mapping[str, Path]) -> int:
    """Ask the questions of `groups`, and print what the answers amount to; `files` are the data sets of tasks."""
    started = time.monotonic()
    lengths = whole_numbers("lengths", options.lengths, LONGEST)
    if options.rag_tokens is not None and options.rag is None:
        raise ValueError(f"rag_tokens is {options.rag_tokens}, and nothing is searched: give --rag bm25")
    from landmark.evaluation import bm25, figures
    from landmark.evaluation.asking import Asker, Sample, contents, order, summaries
    from landmark.evaluation.samples import Journal
    from landmark.hf.retrieval_heads import RetrievalHeads

    if options.plot is not None:
        figures.check_can_draw(options.plot)
    if options.rag is not None:
        bm25.check_installed()
    heads = None if options.heads is None else RetrievalHeads.load(options.heads)

    configs: list[PretrainedConfig] = []  # the model's, once it is known

    def check(config: "PretrainedConfig") -> None:
        configs.append(config)
        attending = _attending(options, config, heads)
        for length in lengths if options.rag is None else [_rag_tokens(options, config)]:
            attending.check_length(config, length)

    planned: list[tuple[list[Cell], Prompts, Passages | None]] = []  # by what is checked before weights are read

    def check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
        passages = _passages(options, configs[-1], tokenizer)
        planned.append((*_plan(options, groups, haystack, lengths, tokenizer), passages))

    model, tokenizer = load_either(
        options.model,
        options.adapter,
        check,
        options.numbers,
        check_tokenizer=check_tokenizer,
    )
    ((cells, prompts, passages),) = planned
    attending = _attending(options, model.config, heads)
    settings = attending.settings() | _computed(options, model)
    journal = None
    if options.out is not None:
        described = contents(model, tokenizer, haystack) | _described(options, groups, files) | settings
        journal = Journal(options.out, described, Sample)

    asker = Asker(model, attending, prompts, passages)
    ends = None if options.minutes is None else started + 60 * options.minutes
    found = _ask(asker, order(cells, options.samples, options.seed), journal, ends)
    rows = summaries(cells, found, settings | attending.marks())
    _print(rows, options)
    if options.plot is not None and rows:
        figures.draw(rows, options.plot)
    if len(found) < (asked := options.samples * sum(len(cell.group.tasks) for cell in cells)):
        more = "the same command goes on" if options.out is not None else "only with --out does the same command go on"
        print_escaped(f"{len(found):,} of {asked:,} questions: {more}", to_stderr=True)
    return 0


def _computed(options: TaskOptions, model: "PreTrainedModel") -> dict[str, Any]:
    """The number types that answers are computed with, and what is searched for them."""
    found: dict[str, Any] = {"dtype": str(model.dtype).removeprefix("torch."), "rag": options.rag}
    if options.rag is not None:
        found["rag_tokens"] = _rag_tokens(options, model.config)
    if options.numbers.weights is not None:
        found["weights"] = options.numbers.weights
    return found


def _described(options: TaskOptions, groups: "Sequence[Group]", files: Mapping[str, Path]) -> dict[str, Any]:
    """What of the options determines questions, for a log."""
    from landmark.data.text import read_text
    from landmark.evaluation.samples import digest

    together = [group.name for group in groups if len(group.tasks) > 1]  # they share a text
    asked = {"samples": options.samples, "seed": options.seed, "together": together}
    return asked | {name: digest(read_text(file)) for name, file in files.items()}


def _plan(
    options: TaskOptions,
    groups: "Sequence[Group]",
    haystack: str,
    lengths: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
) -> "tuple[list[Cell], Prompts]":
    """What is asked; raises ValueError for lengths and forms that are not possible with the tokenizer."""
    from landmark.evaluation.asking import Cell
    from landmark.evaluation.tasks import Prompts

    cells = [Cell(*cell) for cell in product(groups, _forms(options, tokenizer), lengths)]
    prompts = Prompts(tokenizer, haystack, samples=options.samples, seed=options.seed)
    for cell in cells:
        prompts.check_length(cell.group, cell.length, cell.chat)
    return cells, prompts


def _ask(
    asker: "Asker", texts: "list[tuple[Cell, int]]", journal: "Journal[Sample] | None", ends: float | None
) -> "list[Sample]":
    """The samples of all questions, those in the journal among them, as far as there is time."""
    known = {} if journal is None else journal.samples
    rows = [(row, index) for cell, index in texts for row in cell.rows]
    found = [known[*row, index] for row, index in rows if (*row, index) in known]
    missing = [
        (cell, index, tasks)
        for cell, index in texts
        if (tasks := [name for name, *form in cell.rows if (name, *form, index) not in known])
    ]
    with tokens_read("tokens of texts", sum(cell.length for cell, *_ in missing)) as progress:
        for cell, index, tasks in missing:
            if ends is not None and time.monotonic() >= ends:
                break
            for sample in asker.ask(cell, index, tasks, progress):
                found.append(sample)
                if journal is not None:
                    journal.add(sample)
    return found


def _print(rows: list[dict[str, Any]], options: TaskOptions) -> None:
    if options.json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    shown = [row | {"interval": f"{row['low']:.2f}-{row['high']:.2f}"} for row in rows]
    columns = ("task", "form", "length", "attention", *(["rag"] if options.rag else []), "right", "interval", "score")
    print_table(shown, (*columns, "samples", "tokens_per_s", "seconds", "peak_rss_mb"))
    for row in rows:
        spread = ", ".join(f"{depth}: {right:.0%}" for depth, right in row["by_depth"].items())
        print(f"{row['task']}, {row['form']}, {row['length']:,} tokens by depth: {spread}")


def _attending(options: TaskOptions, config: "PretrainedConfig", heads: "RetrievalHeads | None") -> "Attending":
    from landmark.evaluation.answering import Attending

    attention = options.attention or ("full" if options.rag else None)
    return Attending.of(config, attention, window=options.window, reread=options.reread, heads=heads, **options.reading)


def _rag_tokens(options: TaskOptions, config: "PretrainedConfig") -> int:
    from landmark.hf.config import trained_positions

    return options.rag_tokens or trained_positions(config) // 2


def _passages(
    options: TaskOptions, config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase"
) -> "Passages | None":
    if options.rag is None:
        return None
    from landmark.evaluation.bm25 import Passages
    from landmark.hf.config import is_converted, landmark_settings

    size = landmark_settings(config).block_size if is_converted(config) else DEFAULT_BLOCK_SIZE
    return Passages(tokenizer, _rag_tokens(options, config), size)


def _forms(options: TaskOptions, tokenizer: "PreTrainedTokenizerBase") -> tuple[bool, ...]:
    """Plain (False) and chat (True), as far as they are asked for."""
    if options.form == "auto":
        return (bool(getattr(tokenizer, "chat_template", None)),)
    return FORMS[options.form]
