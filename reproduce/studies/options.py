"""Options of the studies. Light to import: help texts are printed from here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from landmark.cli.options import Bytes, Dtype, NumberOptions
from landmark.limits import FromOne, MaybeFromOne, OutFile, OutFolder, Range, Seed


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Convert SmolLM2-135M-Instruct by self-distillation within a given time, and measure the result.

    OUT gets the adapter every minute, a log and results.json.
    """

    out: Annotated[Path, OutFolder()]
    """Folder for the adapter, the log and the results."""
    gguf: Path | None = None
    """GGUF file of the model; not needed with --smoke."""
    tokenizer: Path | None = None
    """Folder with the tokenizer; default: that in the GGUF file."""
    adapter: Path | None = None
    """Adapter to go on from: it is refined in short windows, with more conversations, at a lower rate."""
    learning_rate: Annotated[float | None, Range(1e-7, 0.1)] = None
    """Highest learning rate; default: that of the training."""
    tokens: Path | None = None
    """Training text as uint16 ids of that tokenizer, in a file of numpy.save; not needed with --smoke."""
    book: tuple[Path, ...] = ()
    """Held-out texts to measure on."""
    seconds: Annotated[float, Range(1)] = 500
    """Time for everything, from the start of the process."""
    measuring: Annotated[float, Range(0)] = 110
    """Seconds of these that are kept for measurements."""
    smoke: bool = False
    """Dry run: train a few steps of every stage on random weights of the same shape, which compiles the kernels and
    shows speed and memory."""
    small: bool = False
    """Use a miniature of the model and of the windows, for a CPU."""
    seed: Seed = 0
    """Seed of the training."""


@dataclass(frozen=True, kw_only=True)
class ConvertedOptions:
    """A model before and after its conversion."""

    original: Annotated[Positional[str], arg(metavar="ORIGINAL")]
    """The model before conversion: a GGUF file, a folder, or a name on the Hugging Face hub."""
    adapter: Path | None = None
    """What its conversion learnt, a file or folder; default: the adapter in the package, for SmolLM2-135M-Instruct."""
    dtype: Dtype = "float32"
    """Number type of weights, keys and values, of both models; auto: bfloat16 where it is multiplied fast."""
    threads: FromOne = 1
    """Threads to compute with."""
    json: bool = False
    """Print JSON lines instead of a table."""


@dataclass(frozen=True, kw_only=True)
class PerplexityOptions(ConvertedOptions):
    """Measure the perplexity of texts and the divergence from the original, in a window and through memory.

    Every reading scores the same tokens. The table gives the ratio of each perplexity to the original's, with its 95 %
    interval over windows. Run again with the same options it resumes.
    """

    texts: tuple[Path, ...]
    """UTF-8 texts."""
    out: Annotated[Path, OutFile()]
    """JSON-lines file of all windows, from which the same command resumes."""
    lengths: str = "2000,8000"
    """Tokens of a window, separated by commas; each window is read from scratch."""
    windows: FromOne = 4
    """Windows of each text and length, spread evenly over the text."""
    readings: tuple[str, ...] = ("full", "landmark", "landmark,chunk_size=504")
    """How the converted model reads: full is the attention of training over the whole window, landmark is through
    memory; settings of reading follow, as in landmark,chunk_size=504,retrieve=8."""
    seconds: Annotated[float | None, Range(1)] = None
    """For each length: no window begins after so many seconds. Default: all windows are measured."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions(ConvertedOptions):
    """Compare answers to ordinary chat prompts before and after conversion, the converted model reading through memory.

    Prints both greedy answers to each prompt, the share of identical ones, their common beginnings, the divergence of
    next-token distributions along the original's answer, and how often the converted model answers that something is
    not mentioned in a text, where there is none. Run again with the same options it resumes.
    """

    out: Annotated[Path, OutFile()]
    """JSON-lines file of all prompts, from which the same command resumes."""
    prompts: Annotated[int, Range(1, 110)] = 110
    """The first so many prompts."""
    tokens: FromOne = 32
    """Tokens of an answer."""


@dataclass(frozen=True, kw_only=True)
class QuestionsOptions(ConvertedOptions):
    """Ask 20 questions about the book in the package: through landmarks, and of the original with BM25.

    The book is read once into a context in WORK (8.3 GB for SmolLM2-135M). Beside them stand the original with the
    right passage alone and with nothing, and the converted model with the right passage alone and with no block opened.
    Prints all answers, and how many are right by the rules of reproduce/studies/lord_jim.toml. Run again with the same
    options it resumes.
    """

    work: Annotated[Path, OutFolder()]
    """Folder for the context and the answers."""
    tokens: MaybeFromOne = None
    """Read only the first so many tokens, and ask what they answer. Default: the whole book."""


@dataclass(frozen=True, kw_only=True)
class LibraryOptions(ConvertedOptions):
    """Ask about a million tokens that were read apart, as hundreds of documents, into one collection.

    The first run writes the documents to WORK/texts and prints the command that reads them (14 GB in 8 bits for
    SmolLM2-135M; it resumes where it was interrupted). The second asks: a passkey, and every other kind of `landmark
    eval recall` once for each part of the text; by opened blocks alone, with five blocks read again, and with none
    opened. Run again with the same options it resumes.
    """

    texts: Annotated[Positional[tuple[Path, ...]], arg(metavar="TEXT ...")]
    """UTF-8 texts to hide the statements in."""
    work: Annotated[Path, OutFolder()]
    """Folder for the documents, the collection and the answers."""
    tokens: FromOne = 1_000_000
    """Tokens of all documents together."""
    parts: FromOne = 5
    """Parts of the text, each with statements of its own."""
    characters: FromOne = 16_000
    """Characters of a document, or a paragraph more."""
    seed: Seed = 0
    """Decides what is stated and asked."""
    host_budget: Annotated[str, Bytes()] = "1GB"
    """Most bytes of keys and values kept in main memory."""


@dataclass(frozen=True, kw_only=True)
class UntrainedOptions:
    """Measure the perplexity of a pretrained model as it is, converted, and converted and read through memory."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """An ordinary model: a folder, a name on the Hugging Face hub, or a GGUF file."""
    text: Annotated[Positional[Path], arg(metavar="TEXT")]
    """UTF-8 text to measure on."""
    tokens: FromOne = 6000
    """Tokens of the text to read."""
    window: Annotated[int, Range(2)] = 2000
    """Tokens of a window; each is read from scratch."""
    threads: FromOne = 1
    """Threads to compute with."""


@dataclass(frozen=True, kw_only=True)
class KeyMarginsOptions:
    """Measure by how much the block that states a passkey outscores all other blocks, for each head.

    The context is one made by `python -m benchmarks long-context`. For every passkey in it, the digits are asked for
    one by one, each after the right digits before it, with the blocks of all other passkeys hidden. The margin is the
    score of the stating block minus the best other score, in nats before the softmax; it is null if the block is not
    among the best 60. Prints a JSON line for each head that has the block there mostly: the median margin of each
    digit, the lowest margin, and the share of digits whose stating block is the best. The last line counts the
    passkeys answered correctly.
    """

    context: Annotated[Positional[Path], arg(metavar="CONTEXT")]
    """Folder of the context."""
    model: Path | None = None
    """Folder of the model that read it; default: the one in the package."""
    threads: FromOne = 1
    """Threads to compute with."""


@dataclass(frozen=True, kw_only=True)
class GroupLandmarksOptions:
    """Measure how well one key for a group of blocks selects the groups that hold a query's best blocks.

    Prints a JSON line for each size of group and kind of key: the share of the best blocks of the test texts that lie
    in the groups of highest score (mean, lowest and highest over heads).
    """

    train: tuple[Path, ...]
    """Texts to train the gates on."""
    test: tuple[Path, ...]
    """Held-out texts to measure on."""
    tokens: Annotated[int, Range(16_384)] = 262_144
    """Tokens read before queries are recorded."""
    threads: FromOne = 1
    """Threads to compute with."""


@dataclass(frozen=True, kw_only=True)
class RecallTablesOptions:
    """Measure recall of a model before and after conversion, at several lengths, beside baselines.

    OUT gets the answers of each run as JSON lines, and recall.md, a table of all runs so far. The same command goes on
    where time ended; each run gets the share of the time that it needs of all.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """The model before conversion: a folder, a name on the Hugging Face hub, or a GGUF file."""
    out: Annotated[Path, OutFolder()]
    """Folder for the answers and the table."""
    part: Literal["baselines", "converted", "table"] = "baselines"
    """Baselines of the model as it is, the converted model, or only the table."""
    only: tuple[str, ...] = ()
    """Names of runs of that part, as it prints them; default: all."""
    adapter: Path | None = None
    """Adapter that converts the model; default: the one in the package."""
    haystack: Path | None = None
    """UTF-8 text around what is asked for; default: the book in the package."""
    numbers: OmitArgPrefixes[NumberOptions] = field(default_factory=NumberOptions)
    minutes: Annotated[float, Range(0)] = 60
    """Time for all runs."""
    threads: FromOne = 1
    """Threads to compute with."""


@dataclass(frozen=True, kw_only=True)
class SourceRankingOptions:
    """Measure how early a block that states what is asked for stands among the sources of an answer.

    Facts are hidden in texts and asked for as in `landmark eval recall`. Questions whose statement lies in the local
    window, which is read without being opened, are left out.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A converted model, or with its adapter the one before conversion: a folder or a GGUF file."""
    adapter: Path | None = None
    """What its conversion learnt; default for a GGUF file: the one in the package."""
    haystack: Path | None = None
    """UTF-8 text around the facts; default: the book in the package."""
    length: Annotated[int, Range(500, 10**7)] = 8192
    """Tokens of a text with its question and answer."""
    samples: Annotated[int, Range(1, 10**4)] = 12
    """Texts, each with a question of every kind."""
    numbers: OmitArgPrefixes[NumberOptions] = field(default_factory=NumberOptions)
    seed: Seed = 0
    """Decides what is stated and asked."""
    threads: FromOne = 1
    """Threads to compute with."""
    json: bool = False
    """Print JSON lines instead of a table."""


@dataclass(frozen=True, kw_only=True)
class ConversionCostOptions:
    """Reckon what converting models of 0.6, 1 and 8 billion parameters by the recipes in docs/recipes takes.

    Prints tokens, operations, memory and hours. The longer time is at the operations a second of the one conversion
    that was measured, of a model so small that a GPU is mostly waiting; the shorter one at a share of the GPU's peak.
    """

    tflops: Annotated[float, Range(1)] = 989
    """Peak of the GPU in bfloat16 without sparsity, 10^12 operations a second; default: that of an H100 or H200."""
    efficiency: Annotated[float, Range(0.001, 1)] = 0.4
    """Share of it that large models reach; an assumption, not measured here."""


@dataclass(frozen=True, kw_only=True)
class ReadingApartOptions:
    """Compare documents read apart with the same documents read in sequence: passkeys and keys of names that they
    state, the first passage that is found for a question, and the perplexity of the text that goes on behind each.

    A group is some documents, which are read once in each way. Run again with the same options it resumes.
    """

    texts: Annotated[Positional[tuple[Path, ...]], arg(metavar="TEXT ...")]
    """UTF-8 texts that the model was not trained on; documents are pieces of them."""
    out: Annotated[Path, OutFile()]
    """JSON-lines file of all groups, from which the same command resumes."""
    model: Path | None = None
    """Folder of a converted model with its tokenizer; default: the one in the package."""
    groups: FromOne = 24
    """Groups of documents."""
    documents: FromOne = 8
    """Documents of a group."""
    characters: FromOne = 1200
    """Characters of a document, on average."""
    threads: FromOne = 1
    """Threads to compute with."""
    seed: Seed = 0
    """Seed of the pieces and of what they state."""
