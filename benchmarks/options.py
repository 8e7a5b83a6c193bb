"""Options of every benchmark, grouped in base classes. Light to import: help texts are printed from here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from landmark.cli.options import Bytes
from landmark.limits import (
    FromOne,
    FromZero,
    MaybeFromOne,
    MaybeFromZero,
    OutFile,
    OutFolder,
    Range,
    Seed,
    Threads,
    check_limits,
)
from landmark.settings import KvDtype, Selection

DEFAULT_GPU_ROWS = Path("gpu-rows.jsonl")

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """What every benchmark takes."""

    threads: Threads = None
    """Threads torch may use on the CPU; default: torch's own choice. Always reported."""
    json: bool = False
    """Print one JSON object per row instead of text."""


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(RowOptions):
    """A comparison of methods in rounds, with a table and a plot."""

    device: Device = "cpu"
    """Where everything runs."""
    dtype: Dtype | None = None
    """Of weights, keys and values; default: float32 on a CPU, bfloat16 on CUDA."""
    rounds: FromOne = 9
    """Measured rounds; in each, every method runs once. One more warms up and is not counted."""
    plot: Annotated[Path | None, OutFile()] = None
    """Also plot the rows into this file, .png or .svg (needs matplotlib)."""

    def check(self) -> None:
        """Raises ValueError for options that mean nothing, before anything is loaded."""
        check_limits(self)
        if self.plot is not None and self.plot.suffix not in (".png", ".svg"):
            raise ValueError(f"plot is {self.plot}: name a file that ends in .png or .svg")


@dataclass(frozen=True, kw_only=True)
class OpsOptions(ComparisonOptions):
    """Time landmark attention against causal attention, forward and forward with backward.

    By default a list of cases for the device runs. Any option of the shape (--lengths, --batch, --heads, --kv-heads,
    --head-dim, --block-size) replaces the list.

    Methods: sdpa, PyTorch's causal attention (on CUDA its FlashAttention), the baseline; cudnn, the
    same by cuDNN (CUDA); flex, FlexAttention with a causal document mask (compiles for a while first); and
    landmark attention by the backends blockwise, fused (CUDA) and reference (short lengths).

      python -m benchmarks ops --threads 1
      python -m benchmarks ops --lengths 1024,4096,16384 --methods sdpa,blockwise --plot ops.svg
    """

    GROUPS: ClassVar = {"shape": ("lengths", "batch", "heads", "kv_heads", "head_dim", "block_size")}

    lengths: str | None = None
    """Positions, landmarks included, separated by commas; 4096 if another shape option is given."""
    batch: MaybeFromOne = None
    """Rows of the batch; 1."""
    heads: MaybeFromOne = None
    """Query heads; 8."""
    kv_heads: MaybeFromOne = None
    """Heads of keys and values, a divisor of the query heads; as many as those."""
    head_dim: MaybeFromOne = None
    """Dimensions of a head; 64."""
    block_size: MaybeFromOne = None
    """Ordinary tokens in a block, its landmark not counted; 63."""
    methods: str | None = None
    """Which of them run, separated by commas; default: all that are for the device. sdpa always runs."""

    def check(self) -> None:
        super().check()
        heads = self.heads or 8
        if heads % (self.kv_heads or heads):
            raise ValueError(f"kv_heads is {self.kv_heads}: give a divisor of the {heads} query heads")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ComparisonOptions):
    """The model that reads: a Llama of random weights, or a converted model from a folder."""

    GROUPS: ClassVar = {
        "shape": ("layers", "heads", "kv_heads", "width", "intermediate", "block_size"),
        "reading": ("retrieve", "local_blocks", "selection"),
    }

    model: Path | None = None
    """Folder of a converted model to time; default: random weights in the shape of the options below."""
    layers: Annotated[int | None, Range(1, 1000)] = None
    """Layers of the random model; default 6 to read, 4 to decode."""
    heads: MaybeFromOne = None
    """Its query heads; default 8."""
    kv_heads: MaybeFromOne = None
    """Its heads of keys and values; default: as many as query heads."""
    width: MaybeFromOne = None
    """Its hidden size, a multiple of the heads; default 512."""
    intermediate: MaybeFromOne = None
    """Size of its feed-forward layers; default 4 times the width."""
    block_size: MaybeFromOne = None
    """Ordinary tokens in a block; default: the model's setting, 50 for the random model."""
    retrieve: MaybeFromOne = None
    """Blocks opened per query; default: the model's setting, 4 for the random model."""
    local_blocks: MaybeFromZero = None
    """Newest complete blocks kept in sight; default: the model's setting, 0 for the random model."""
    selection: Selection | None = None
    """Who chooses the blocks; default: the model's setting, per_token_and_head for the random model."""

    def check(self) -> None:
        super().check()
        shape = ("layers", "heads", "kv_heads", "width", "intermediate", "block_size")
        given = [name for name in shape if getattr(self, name) is not None]
        if self.model is not None and given:
            raise ValueError(f"{', '.join(given)} shape the random model: leave out either them or --model")
        heads, width = self.heads or 8, self.width or 512
        if width % (2 * heads):
            raise ValueError(f"width is {width}: give an even multiple of the {heads} heads, so that rotary pairs fit")
        if heads % (self.kv_heads or heads):
            raise ValueError(f"kv_heads is {self.kv_heads}: give a divisor of the {heads} query heads")


@dataclass(frozen=True, kw_only=True)
class ReadOptions(ModelOptions):
    """Time prefill: chunks of a long text, with all that came before in memory.

    Methods, with the same weights and chunks: memory; "no memory" (the same with retrieve 0 and nothing kept; the
    baseline); plain (the model before conversion on the chunk alone); full (the same model with attention to the whole
    text through a preallocated KV cache). Memory is filled with random keys and values.

      python -m benchmarks read --threads 1
      python -m benchmarks read --contexts 2000,8000,32000 --plot read.svg
    """

    contexts: str = "2000,8000,32000"
    """Ordinary tokens before the chunk of the median round, separated by commas."""
    chunk_size: FromOne = 250
    """Ordinary tokens read at once."""
    full_limit: FromOne = 32768
    """Longest context for full attention, which takes quadratic time."""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(ModelOptions):
    """Time decoding: one token after another, over contexts of any length.

    Methods, with the same weights: memory; no memory (the same with retrieve 0: the cost of everything but retrieval);
    full (the model before conversion, attention to every token through a preallocated KV cache; the baseline); growing
    (the same through transformers' DynamicCache, which copies all keys and values at every step); and with --dense the
    grouped softmax over every token, written densely. Contexts are filled with random keys and values. What does not
    fit is skipped, with the figures.

      python -m benchmarks decode --threads 1
      python -m benchmarks decode --contexts 8192,131072 --batch-sizes 1,4 --plot decode.svg
    """

    contexts: str = "8192,131072,1048576"
    """Ordinary tokens before the first step, separated by commas."""
    batch_sizes: str = "1,4"
    """Rows decoded at once, separated by commas."""
    steps: FromOne = 8
    """Single-token steps in each round."""
    methods: str = "memory,no memory,full,growing"
    """Methods that run, separated by commas."""
    dense: bool = False
    """Also time the grouped softmax over the whole cache, written densely."""


@dataclass(frozen=True, kw_only=True)
class LaunchesOptions(ModelOptions):
    """Count what one prefill chunk and one decode step start and wait for, by PyTorch's profiler.

    With a context in memory, and without memory, a row each: launches of kernels and graphs, synchronisations with the
    device, numbers that the host reads from tensors, operations of PyTorch, and the time that kernels take.

      python -m benchmarks launches --device cuda --contexts 8192,131072
    """

    contexts: str = "8192"
    """Ordinary tokens before the chunk, separated by commas."""
    chunk_size: FromOne = 250
    """Ordinary tokens of the chunk."""


@dataclass(frozen=True, kw_only=True)
class IndexSearchOptions(ComparisonOptions):
    """Time search through landmark keys, by every index, against exact search, the baseline.

    Keys are drawn from a normal distribution with the mean and covariance of real landmark keys (the package's model on
    the package's book), for one key-value head with two query heads; queries are real ones of the same text. The
    roofline is that of scoring every key. What does not fit, or takes too long to build, is skipped.

      python -m benchmarks index --threads 1
      python -m benchmarks index --blocks 10000,100000 --methods hierarchical@0.99,faiss_hnsw --plot index.png
    """

    blocks: str = "10000,100000,1000000"
    """Landmark keys in the index, separated by commas."""
    queries: str = "1,256"
    """Queries asked at once, separated by commas."""
    methods: str = "hierarchical,hierarchical@0.99,faiss_flat,faiss_ivf,faiss_hnsw"
    """Indexes that run, separated by commas, with @ and a recall for an approximate search. exact always runs."""

    def check(self) -> None:
        super().check()
        if self.device != "cpu" or self.dtype not in (None, "float32"):
            raise ValueError(
                f"device is {self.device} and dtype {self.dtype}: indexes are compared on a CPU, in float32"
            )


@dataclass(frozen=True, kw_only=True)
class TextOptions(RowOptions):
    """A converted model and a text to read."""

    model: Path | None = None
    """Folder of a converted model with its tokenizer; default: the one in the package."""
    text: Path | None = None
    """UTF-8 text to read; default: the book in the package."""
    threads: Threads = 1
    """Threads torch may use on the CPU."""


@dataclass(frozen=True, kw_only=True)
class ViewPageOptions(RowOptions):
    """Open the page of `landmark view` in Chromium, click tokens and search; needs playwright."""

    pages: tuple[Path, ...] = ()
    """Pages that `landmark view` wrote; default: pages of made-up reads."""
    tokens: str = "200000,1000000"
    """Tokens of the text."""
    generated: FromOne = 100
    """Generated tokens, each with the reads of 30 layers and 9 heads."""
    rounds: FromOne = 5
    """Times that a page is opened; each time 10 tokens are clicked."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How landmark keys are searched."""

    index: Literal["auto", "exact", "hierarchical"] = "auto"
    """Index of the landmark keys: docs/indexes.md."""
    recall: Annotated[float, Range(0.001, 1, "a share of the best blocks above 0, at most 1")] = 1.0
    """Share of the best blocks that the hierarchical index has to find."""


@dataclass(frozen=True, kw_only=True)
class TierReadOptions(TextOptions):
    """Read and decode one text within several budgets of memory, by turns.

    A cache with all blocks in memory and one per budget read the same text, a few chunks at a time and by turns, then
    decode. Stops with an error if their logits differ in a single bit.
    """

    host_budgets: str = "16MB,64MB,256MB"
    """Budgets of host memory, separated by commas."""
    tokens: FromOne = 100_000
    """Ordinary tokens to read."""
    new_tokens: FromOne = 500
    """Tokens of the text behind those, decoded one by one."""


@dataclass(frozen=True, kw_only=True)
class TierDiskOptions(RowOptions):
    """Time random reads of blocks from a spill file, in the page cache and not, announced before and not."""

    folder: Annotated[Path | None, OutFolder()] = None
    """Folder on the disk to time; default: the system's temporary one."""
    gib: FromOne = 1
    """Size of the file, in GiB."""
    threads: Threads = 1
    """Threads torch may use on the CPU."""


@dataclass(frozen=True, kw_only=True)
class TierInt8Options(RowOptions):
    """What blocks in int8 below the device cost: perplexity, passkeys, bytes of a block, and the time of a fetch."""

    model: Path | None = None
    """Folder of a converted model with its tokenizer; default: the one in the package."""
    texts: tuple[Path, ...] = ()
    """UTF-8 texts for perplexity, held-out ones; default: the book in the package."""
    windows: FromZero = 24
    """Windows of the texts, spread evenly over them; 0 measures no perplexity."""
    length: FromOne = 2048
    """Ordinary tokens of a window."""
    samples: FromZero = 20
    """Passkeys, at even depths; 0 asks for none."""
    passkey_length: FromOne = 8192
    """Ordinary tokens of a text with a passkey."""
    host_budget: Annotated[str, Bytes()] = "1MB"
    """Bytes of blocks in memory. All are read as they were dequantized, so that it changes times alone."""
    threads: Threads = 1
    """Threads torch may use on the CPU."""


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(RowOptions):
    """Weights in 8 and 4 bits: products with one row by the loops of this package and by PyTorch, and perplexity."""

    model: Annotated[Positional[Path], arg(metavar="MODEL.gguf")]
    """GGUF file of the model that the adapter belongs to."""
    adapter: Path | None = None
    """Adapter that `landmark train` wrote; default: the one in the package."""
    rounds: FromOne = 31
    """Measured rounds of products; in each, every kind of weights is multiplied once."""
    texts: tuple[Path, ...] = ()
    """UTF-8 texts for perplexity, held-out ones; default: the book in the package."""
    windows: FromZero = 8
    """Windows of the texts, spread evenly over them; 0 measures no perplexity."""
    length: FromOne = 2048
    """Ordinary tokens of a window."""
    threads: Threads = 1
    """Threads torch may use on the CPU."""


@dataclass(frozen=True, kw_only=True)
class TierOverlapOptions(TextOptions):
    """How far the blocks that one layer opens predict what it opens next, and what other layers open.

    The first layer is left out: its landmark keys are all equal, and it opens the newest blocks.
    """

    tokens: FromOne = 100_000
    """Ordinary tokens to read."""
    new_tokens: FromOne = 500
    """Tokens of the text behind those, decoded one by one."""


@dataclass(frozen=True, kw_only=True)
class TierReadersOptions(RowOptions):
    """Memory of processes that have one context open and have asked it: of their own, and shared (Pss). Linux only.

    Once with the landmark keys that the context keeps for mapping, and once without, where each process loads them.
    """

    context: Path | None = None
    """Folder of a context; default: the package's book, read again and again."""
    tokens: FromOne = 200_000
    """Ordinary tokens to read where no context is given, approximately."""
    model: Path | None = None
    """Folder of a converted model with its tokenizer; default: the one in the package."""
    readers: FromOne = 10
    """Processes."""
    host_budget: Annotated[str, Bytes()] = "256MB"
    """Most bytes of keys and values that each keeps in main memory."""
    folder: Annotated[Path | None, OutFolder()] = None
    """Folder to work in; default: the system's temporary one."""
    threads: Threads = 1
    """Threads torch may use on the CPU."""


@dataclass(frozen=True, kw_only=True)
class ContextOptions(RowOptions, SearchOptions):
    """A context on disk, and the model that reads it."""

    context: Annotated[Positional[Path], arg(metavar="CONTEXT")]
    """Folder of the context."""
    model: Path | None = None
    """Folder of a converted model with its tokenizer; default: the one in the package."""
    host_budget: Annotated[str, Bytes()] = "256MB"
    """Most bytes of keys and values kept in main memory."""
    threads: Threads = 1
    """Threads torch may use on the CPU."""


@dataclass(frozen=True, kw_only=True)
class LongReadOptions(ContextOptions):
    """Read millions of tokens, with passkeys at even depths, into a context on disk.

    Prints a row whenever the number of tokens has grown by half: seconds per 1,000 tokens just before, resident and
    disk bytes. Run the same command again to resume an interrupted one.
    """

    texts: tuple[Path, ...] = ()
    """UTF-8 texts to read, repeated where they are too few."""
    kv_dtype: KvDtype | None = None
    """int8 makes a context that keeps keys and values in 8 bits, about a quarter of the bytes of float32."""
    tokens: FromOne = 1_000_000
    """Ordinary tokens to read, approximately."""
    passkeys: FromOne = 20
    """Passkeys hidden in the text."""
    seed: Seed = 0
    """Seed of the passkeys."""


@dataclass(frozen=True, kw_only=True)
class LongAskOptions(ContextOptions):
    """Ask for every passkey of a context that `long-context read` wrote.

    All passkeys are stated in the same words, so the landmark keys of the others are masked while one is asked for;
    those of all other blocks are searched. Latency is measured without masking, by turns with --baseline if given.
    """

    retrieve: MaybeFromZero = None
    """Blocks opened per query; default: as when the context was read."""
    baseline: Path | None = None
    """Folder of another, shorter context to compare latency with."""


@dataclass(frozen=True, kw_only=True)
class LongDecodeOptions(ContextOptions):
    """Count the bytes that a decoded token reads, for every selection of blocks."""

    new_tokens: FromOne = 50
    """Tokens to decode."""


@dataclass(frozen=True, kw_only=True)
class GrowthOptions(TextOptions, SearchOptions):
    """How the time to read a token grows with the length of the text before it.

    A cache reads the text, repeated, to each length. There it takes turns with a cache that has read the shortest
    length only, 2,046 tokens a turn. Prints seconds per 1,000 tokens of both, by the wall clock and of the processor,
    and the median ratio with its quartiles. With --context, the long cache is that of a context on disk.
    """

    lengths: str = "16384,65536,262144,1048576"
    """Ordinary tokens read before, separated by commas; the shortest is the baseline."""
    context: Path | None = None
    """Folder of a context whose length replaces all lengths but the shortest; both caches get a budget of 256 MB."""
    rounds: FromOne = 8
    """Measured rounds; in each, both caches read once."""


@dataclass(frozen=True, kw_only=True)
class LaptopOptions:
    """Time a pretrained model on this machine: this library beside llama.cpp and transformers, on one GGUF file.

    Methods: llama.cpp with flash attention; memory and no memory, the model with its adapter, reading through memory or
    the local window alone; full, the original model in transformers with full attention. Each is a process of its own.
    They read the same text, a piece at a time and by turns, and at every length decode some tokens.

    llama.cpp comes with the npm package node-llama-cpp:

      npm install --prefix llama --ignore-scripts node-llama-cpp
      python -m benchmarks laptop MODEL.gguf --llama llama
      python -m benchmarks laptop MODEL.gguf --llama llama --contexts 2000,128000 --threads 2 --methods llama.cpp,memory
    """

    model: Annotated[Positional[Path], arg(metavar="MODEL.gguf")]
    """GGUF file of the model that the adapter belongs to."""
    adapter: Path | None = None
    """Adapter that `landmark train` wrote; default: the one in the package."""
    llama: Path | None = None
    """Folder where npm installed node-llama-cpp; without it llama.cpp is left out."""
    contexts: str = "2000,8000,32000"
    """Lengths in tokens, separated by commas."""
    threads: str = "1,2"
    """Numbers of threads, separated by commas."""
    methods: str = "llama.cpp,memory,no memory,full"
    """Which of them run, separated by commas."""
    dtypes: str = "float32,bfloat16,int8"
    """Of weights, keys and values of all but llama.cpp, which computes with those of the file. int8: weights of linear
    layers in 8 bits, all else in bfloat16; not of full, which is the original model."""
    limit: FromOne = 8000
    """Longest context of no memory, whose speed is the same at all lengths, and of full, which takes minutes beyond;
    and the longest that more than one round reads."""
    rounds: FromOne = 3
    """Rounds; each reads all lengths from the beginning, those beyond the limit in the first alone."""
    steps: FromOne = 16
    """Steps of decoding at each length in each round. One more warms up and is not counted."""
    piece: FromOne = 2000
    """Tokens that a contender reads in a turn. The speed at a length is given from the beginning on, and of the last
    piece."""
    text: Path | None = None
    """UTF-8 text to read, repeated where it is too short; default: the book in the package."""
    json: bool = False
    """Print one JSON object per row instead of a table."""


@dataclass(frozen=True, kw_only=True)
class ReliabilityOptions(RowOptions):
    """What contexts on disk survive, part by part: `--parts` names some of them.

    commands: kills read, append, fork, delete and export before each call that changes the disk, and at random
    instants, and runs the same command again. answers: flips random bits of each region, then opens, asks and reads on.
    forks: random sequences with forks in memory. hostile: folders made to do harm, and eight commands in each.

    kills: kills a writer at random instants. readers: snapshots beside a writer. flips: bits of each region, found by
    verify. power_cuts, refused_calls: every call that changes the disk in turn, with each kind of loss or error.

    Exit code 1 if anything committed was lost, wrong, read silently, or touched outside of the context; a part whose
    trials build on each other stops at the first. docs/reliability.md has what was found.
    """

    parts: str | None = None
    """Parts to run, separated by commas; default: all."""
    kills: FromOne = 300
    """Kills at random instants, of the writer and of commands."""
    flips: FromOne = 200
    """Bits flipped in each region."""
    forks: FromOne = 500
    """Random sequences with forks in memory."""
    hostile: FromOne = 100
    """Hostile folders, drawn at random from all that there are."""
    seconds: Annotated[float, Range(0.1, 10**6)] = 20.0
    """Seconds of reading beside a writer."""
    folder: Annotated[Path | None, OutFolder()] = None
    """Folder on the file system to try; default: the system's temporary one."""
    seed: Seed = 0
    """Seed of instants, bits, sequences and folders."""
    threads: Threads = 1
    """Threads torch may use on the CPU."""


@dataclass(frozen=True, kw_only=True)
class ParallelOptions(RowOptions):
    """Whether a training gives the same losses in one, two and four processes.

    Trains a tiny model on the package's book in one process, then in two and four with --parallel ddp, fsdp and
    sequence; resumes checkpoints with other numbers of processes; and resumes after a process was killed. Prints the
    largest differences of loss and gradient norm from one process. docs/scaling.md has what was found.
    """

    steps: Annotated[int, Range(4, 10**6)] = 50
    """Optimizer steps."""
    learning_rate: Annotated[float, Range(1e-12, 1e3)] = 1e-3
    """Highest learning rate."""
    folder: Annotated[Path | None, OutFolder()] = None
    """Folder for the trainings; default: the system's temporary one."""


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """Test and time everything on a CUDA device in under ten minutes, and compare with the targets.

    In stages, small ones first: the tests of the kernels; 8 layers of the shape of Llama-3-8B, prefill, decoding and
    launches; attention in training. Each row is written as soon as it is known. Run again with the same file it goes on
    with the stages that did not end. Needs a checkout with the development tools. Exit code: 0 if all targets are met,
    1 if something failed, missed its target or found no time, 2 without a CUDA device.
    """

    out: Annotated[Path, OutFile()] = DEFAULT_GPU_ROWS
    """JSON-lines file of all rows, from which the same command resumes."""
    seconds: Annotated[float, Range(1)] = 570
    """Time for everything; a stage that is under way then is ended."""
    small: bool = False
    """Dry run of the same stages in tiny shapes on a CPU. Its figures mean nothing."""


@dataclass(frozen=True, kw_only=True)
class ServeTrialsOptions(RowOptions):
    """What `landmark serve` survives, part by part: `--parts` names some of them. The tests' tiny model serves.

    kills: kills the server at random instants while it reads and answers, and looks at its files. hostile: requests
    made to do harm. soak: users who ask, go away, add, replace, remove, cancel and delete at random, beside restarts
    and kills.

    Exit code 1, or an error at once, if anything acknowledged was lost, anything removed came back, or a request got a
    status of 500 and more. docs/serving.md has what was found.
    """

    parts: str | None = None
    """Parts to run, separated by commas; default: all."""
    kills: FromOne = 100
    """Kills of the server."""
    requests: FromOne = 10_000
    """Hostile requests."""
    seconds: FromOne = 1800
    """Length of the soak."""
    round: FromOne = 60
    """Seconds of the soak between two stops of the server, every other one by a kill."""
    folder: Annotated[Path | None, OutFolder()] = None
    """Folder on the file system to try; default: the system's temporary one."""
    seed: Seed = 0
    """Seed of requests, texts and instants."""
    threads: Threads = 1
    """Threads torch may use on the CPU."""


@dataclass(frozen=True, kw_only=True)
class ServeLoadOptions(RowOptions):
    """Load on a running server without keys: clients that ask one question after another."""

    url: str = "http://127.0.0.1:8000"
    """Where `landmark serve` listens."""
    model: str = "landmark@library"
    """Model and context that are asked."""
    clients: str = "1,8"
    """Numbers of clients at a time, one run each."""
    seconds: FromOne = 60
    """Length of a run."""
    new_tokens: FromOne = 32
    """Tokens of an answer."""
