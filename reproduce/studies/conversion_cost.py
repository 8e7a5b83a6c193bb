"""What a conversion takes: operations, memory and time, reckoned from shapes and recipes and from one measured run.

Operations are those of matrix products, each multiplication and addition one. With adapters on frozen weights a
token costs 2 operations for each weight in the student's forward, 2 in its backward (no gradients of weights), 2 in
the teacher's forward; an adapter's weights cost 6. Attention is that of docs/performance.md.

Memory is that of one micro-batch: float32 weights, adapters with their gradients and moments, activations kept for the
backward pass, and logits of student and teacher and a copy in 16 bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from landmark.training.plan import Lora
from landmark.training.recipe import Recipe, read_recipe
from landmark.training.stages import Stage
from reproduce.studies.options import ConversionCostOptions

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
STRIDE = 64 / 63  # positions of the student for a token; the teacher has no landmarks
RANK = Lora().rank


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder."""

    layers: int
    width: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = True

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear modules of a layer."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.width, query), (self.width, key), (self.width, key), (query, self.width)]
        return [*attention, *[(self.width, self.intermediate)] * 2, (self.intermediate, self.width)]

    @property
    def linear(self) -> int:
        """Weights of all linear modules but the head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices)

    @property
    def head(self) -> int:
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        return self.linear + self.head * (1 if self.tied else 2)

    @property
    def adapters(self) -> int:
        return self.layers * sum(RANK * (inputs + outputs) for inputs, outputs in self.matrices)

    def operations(self, window: int) -> float:
        """For a token, as a mean over windows of so many positions."""
        weights = self.linear + self.head
        pairs = window / 2 * self.heads * self.head_dim * self.layers  # scored, and as many weighed
        student = 4 * weights + 6 * self.adapters + (4 + 10) * pairs
        return STRIDE * student + 2 * weights + 4 * pairs

    def bytes(self, stage: Stage) -> float:
        """In a micro-batch of a stage."""
        positions = stage.batch_size * stage.window_positions
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        # 32 bits: two norms and two additions. 16 bits: what enters and leaves linear modules and attention.
        layer = 4 * 4 * self.width + 2 * (3 * self.width + 3 * query + 4 * key + 4 * self.intermediate + 7 * RANK)
        weights = 4 * self.parameters + 16 * self.adapters
        return weights + positions * (layer * self.layers + 3 * 2 * self.vocabulary)


SHAPES = {
    "qwen3-0.6b": ("Qwen3-0.6B", Shape(28, 1024, 3072, 16, 8, 128, 151_936)),
    "llama-3.2-1b": ("Llama-3.2-1B", Shape(16, 2048, 8192, 32, 8, 64, 128_256)),
    "llama-3.1-8b": ("Llama-3.1-8B", Shape(32, 4096, 14_336, 32, 8, 128, 128_256, tied=False)),
}
SMOLLM2 = Shape(30, 576, 1536, 9, 3, 64, 49_152)


# The run of the adapter in the package, on one NVIDIA H200 (its card): time, peak memory, and tokens by window: 18.2
# million tokens in the shares in which its stages had read them.
MEASURED_SECONDS, MEASURED_GIB = 379, 28
MEASURED_TOKENS = {512: 4.0e6, 2048: 9.3e6, 4096: 2.5e6, 8192: 2.4e6}
LARGEST = Stage(1, 2048, 12)  # its largest micro-batch


def measured_speed() -> float:
    """Operations a second of that run."""
    done = sum(count * SMOLLM2.operations(window) for window, count in MEASURED_TOKENS.items())
    return done / MEASURED_SECONDS


class Cost(NamedTuple):
    """Of one conversion."""

    tokens: float
    operations: float
    bytes: float

    def hours(self, operations_per_s: float, devices: int = 1) -> float:
        """Without loss between devices: they exchange the gradients of adapters, some tens of megabytes a step."""
        return self.operations / operations_per_s / devices / 3600


def cost(shape: Shape, recipe: Recipe) -> Cost:
    """What a recipe takes with a model of this shape."""
    tokens, operations = 0.0, 0.0
    for stage in recipe.stages:
        read = recipe.micro_batches * stage.steps * stage.batch_size * stage.window_positions / STRIDE
        tokens += read
        operations += read * shape.operations(stage.window_positions)
    return Cost(tokens, operations, max(shape.bytes(stage) for stage in recipe.stages))


COLUMNS = ("model", "parameters", "adapters", "tokens", "GFLOP per token", "memory", "one GPU", "eight GPUs")


def rows(options: ConversionCostOptions) -> list[dict[str, str]]:
    """One row for each recipe."""
    fast, slow = options.tflops * 1e12 * options.efficiency, measured_speed()
    found = []
    for name, (title, shape) in SHAPES.items():
        one = cost(shape, read_recipe(RECIPES / f"{name}.toml"))
        times = [f"{_clock(one.hours(fast, devices))} to {_clock(one.hours(slow, devices))}" for devices in (1, 8)]
        cells = (f"{shape.parameters / 1e9:.2f} G", f"{shape.adapters / 1e6:.1f} M", f"{one.tokens / 1e6:.0f} M")
        cells += (f"{one.operations / one.tokens / 1e9:.1f}", f"{one.bytes / 2**30:.0f} GiB", *times)
        found.append(dict(zip(COLUMNS, (title, *cells), strict=True)))
    return found


def _clock(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 2 else f"{hours * 60:.0f} min"


def table(found: Sequence[dict[str, str]]) -> str:
    """The rows in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.values() for row in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def checks() -> str:
    """What the reckoning gives for the measured run, in one line."""
    reckoned = SMOLLM2.bytes(LARGEST) / 2**30
    return (
        f"the measured run: {measured_speed() / 1e12:.0f} TFLOP/s, {reckoned:.0f} GiB reckoned where"
        f" {MEASURED_GIB} were measured"
    )


def run(options: ConversionCostOptions) -> int:
    """Prints the table, and what it gives for the run that was measured."""
    print(table(rows(options)))
    print(f"\n{checks()}")
    return 0
