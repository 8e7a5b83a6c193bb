"""What `landmark bench` can be told. Light to import: the command line needs it before all else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from landmark.limits import FromOne, MaybeFromOne, MaybeFromZero, OutFile, Range, Threads, check_limits

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    device: Device = "cpu"
    """Where everything runs."""
    dtype: Dtype | None = None
    """Of weights, keys and values; default: float32 on a CPU, bfloat16 on CUDA."""
    threads: Threads = None
    """Threads torch may use on the CPU; default: torch's own choice. Always reported."""
    rounds: FromOne = 9
    """Measured rounds; in each, every contender runs once. One more warms up and is not counted."""
    json: bool = False
    """Print one JSON object per row instead of a table."""
    plot: Annotated[Path | None, OutFile()] = None
    """Also draw the rows into this file, .png or .svg (needs matplotlib)."""

    def check(self) -> None:
        """Raises ValueError for options that mean nothing, before anything is loaded."""
        check_limits(self)
        if self.plot is not None and self.plot.suffix not in (".png", ".svg"):
            raise ValueError(f"plot is {self.plot}: name a file that ends in .png or .svg")


@dataclass(frozen=True, kw_only=True)
class OpsOptions(CommonOptions):
    """Time landmark attention beside causal attention, forward and forward with backward.

    Without further options a list of cases made for the device is run. Any option of the shape (--lengths,
    --batch, --heads, --kv-heads, --head-dim, --block-size) replaces the list.

    Contenders: sdpa, PyTorch's causal attention (on CUDA its FlashAttention), the base of the ratios; cudnn, the
    same by cuDNN (CUDA); flex, FlexAttention with a causal document mask (compiles for a while first); and
    landmark attention by the backends blockwise, fused (CUDA) and reference (short lengths).

      landmark bench ops --threads 1
      landmark bench ops --lengths 1024,4096,16384 --contenders sdpa,blockwise --plot ops.svg
    """

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
    contenders: str | None = None
    """Which of them run, separated by commas; default: all that are for the device. sdpa always runs."""

    def check(self) -> None:
        super().check()
        heads = self.heads or 8
        if heads % (self.kv_heads or heads):
            raise ValueError(f"kv_heads is {self.kv_heads}: give a divisor of the {heads} query heads")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CommonOptions):
    """The model that reads: a Llama of random weights, or a converted model from a folder."""

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
    """Time reading: chunks of a long text, with all that came before in memory.

    Contenders, with the same weights and chunks: memory; "no memory" (the same with retrieve 0 and nothing kept; the
    base of the ratios); plain (the model before conversion on the chunk alone); full (it again, with attention to
    the whole text through a preallocated cache). Memory is filled with random keys and values, not read.

      landmark bench read --threads 1
      landmark bench read --contexts 2000,8000,32000 --plot read.svg
    """

    contexts: str = "2000,8000,32000"
    """Ordinary tokens before the chunk of the median round, separated by commas."""
    chunk: FromOne = 250
    """Ordinary tokens read at once."""
    full_limit: FromOne = 32768
    """Longest context for the contender full; it takes quadratic time."""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(ModelOptions):
    """Time decoding: one token after another, over contexts of any length.

    Contenders, with the same weights: memory; no memory (the same with retrieve 0: what the weights and everything
    around attention cost); full (the model before conversion, attention to every token through a preallocated cache;
    the base of the ratios); growing (the same through transformers' own cache, which copies all keys and values at
    every step); and with --dense the grouped softmax over every token, written densely. Contexts are filled with
    random keys and values, not read. What does not fit is skipped, with the figures.

      landmark bench decode --threads 1
      landmark bench decode --contexts 8192,131072 --batch-sizes 1,4 --plot decode.svg
    """

    contexts: str = "8192,131072,1048576"
    """Ordinary tokens before the first step, separated by commas."""
    batch_sizes: str = "1,4"
    """Rows decoded at once, separated by commas."""
    steps: FromOne = 8
    """Single-token steps in each round."""
    dense: bool = False
    """Also time the grouped softmax over the whole cache, written densely."""


@dataclass(frozen=True, kw_only=True)
class IndexSearchOptions(CommonOptions):
    """Time the search through landmark keys, by every index, beside exact search, the base of the ratios.

    Keys are drawn from a normal distribution with the mean and covariance that the landmarks of the package's model
    have in the package's book, for one key-value head with two query heads; queries are real ones from the same
    reading. Floors are of scoring every key. What does not fit, or takes too long to build, is skipped.

      landmark bench index --threads 1
      landmark bench index --blocks 10000,100000 --contenders hierarchical,hierarchical@0.99,faiss_hnsw --plot index.png
    """

    blocks: str = "10000,100000,1000000"
    """Landmark keys in the index, separated by commas."""
    queries: str = "1,256"
    """Queries asked at once, separated by commas."""
    contenders: str = "hierarchical,hierarchical@0.99,faiss_flat,faiss_ivf,faiss_hnsw"
    """Indexes that run, separated by commas, with @ and a recall for an approximate search. exact always runs."""

    def check(self) -> None:
        super().check()
        if self.device != "cpu" or self.dtype not in (None, "float32"):
            raise ValueError(
                f"device is {self.device} and dtype {self.dtype}: indexes are compared on a CPU, in float32"
            )
