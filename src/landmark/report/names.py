"""Names that whoever measures and whoever reports must spell alike."""

# Tables of the report.
LANGUAGE_MODELING = "language_modeling"
SELECTION = "selection"
TOP_K = "top_k"
BLOCK_SIZE = "block_size"
MISS_GATE = "miss_gate"
POSITIONS = "positions"
BLOCK_DROPOUT = "block_dropout"
TRAINING_MEMORY = "training_memory"
PASS_KEY = "pass_key"
CONVERSION = "conversion"
THROUGHPUT = "throughput"
TABLES = (
    LANGUAGE_MODELING,
    SELECTION,
    TOP_K,
    BLOCK_SIZE,
    MISS_GATE,
    POSITIONS,
    BLOCK_DROPOUT,
    TRAINING_MEMORY,
    PASS_KEY,
    CONVERSION,
    THROUGHPUT,
)

# Corpora: what the paper's PG-19 and arXiv math are held against.
BOOKS = "books"
MATH = "math"
CORPORA = (BOOKS, MATH)

# Methods.
LANDMARK = "landmark"
FULL = "full attention"
TRANSFORMER_XL = "Transformer-XL"
SINKS = "sliding window with sinks"
MEMORIZING = "Memorizing Transformer"
ANCESTOR = "plain ancestor"  # a pretrained model as it was before it was converted
WITH_MISS_GATE = "landmark with miss gate"
WITH_JUMPS = "landmark trained with positional jumps"
WITH_BLOCK_DROPOUT = "landmark trained with block dropout"
WITH_MEMORY = "landmark trained with memory"
WITH_RECURRENCE = "landmark with a recurrent window"
