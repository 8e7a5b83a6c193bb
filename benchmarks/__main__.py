"""`python -m benchmarks`: every speed figure of the project."""

from landmark.cli.program import Command, Program

COMMANDS = (
    Command("ops", "benchmarks.commands:run_ops", "landmark attention as an operation"),
    Command("read", "benchmarks.commands:run_read", "prefill with a long text in memory"),
    Command("decode", "benchmarks.commands:run_decode", "decoding over contexts of any length"),
    Command("launches", "benchmarks.commands:run_launches", "what a chunk and a step start on a device, and wait for"),
    Command("laptop", "benchmarks.commands:run_laptop", "a pretrained model beside llama.cpp and transformers"),
    Command("weights", "benchmarks.commands:run_weights", "weights in 8 and 4 bits, ours and those of PyTorch"),
    Command("index", "benchmarks.commands:run_index", "search through landmark keys"),
    Command("tiers read", "benchmarks.commands:run_tiers_read", "reading and decoding within budgets of memory"),
    Command("tiers disk", "benchmarks.commands:run_tiers_disk", "random reads of blocks from disk"),
    Command("tiers int8", "benchmarks.commands:run_tiers_int8", "what blocks in int8 below the device cost"),
    Command("tiers overlap", "benchmarks.commands:run_tiers_overlap", "whether opened blocks can be predicted"),
    Command("tiers readers", "benchmarks.commands:run_tiers_readers", "memory of processes that share a context"),
    Command("long-context read", "benchmarks.commands:run_long_read", "read millions of tokens into a context"),
    Command("long-context ask", "benchmarks.commands:run_long_ask", "passkeys and latency in such a context"),
    Command("long-context decode", "benchmarks.commands:run_long_decode", "bytes read per decoded token"),
    Command("long-context growth", "benchmarks.commands:run_growth", "time per token against length"),
    Command("reliability", "benchmarks.commands:run_reliability", "kills, power cuts and flipped bits in contexts"),
    Command("parallel", "benchmarks.commands:run_parallel", "the same training in 1, 2 and 4 processes"),
    Command("view", "benchmarks.commands:run_view", "the page of `landmark view` in a browser"),
    Command("serve", "benchmarks.commands:run_serve_load", "load on a running `landmark serve`"),
    Command("serve-trials", "benchmarks.commands:run_serve_trials", "kills, hostile requests and a soak of the server"),
    Command("gpu", "benchmarks.commands:run_gpu", "tests, timings and targets on a CUDA device"),
)

BENCHMARKS = Program(
    "python -m benchmarks",
    "Time and memory against baselines and against the roofline of the machine, in one run on one machine.",
    COMMANDS,
    """\
  python -m benchmarks ops --threads 1
  python -m benchmarks decode --contexts 8192,131072 --batch-sizes 1,4 --plot decode.svg
  python -m benchmarks tiers read --host-budgets 16MB,64MB --tokens 50000""",
)

if __name__ == "__main__":
    raise SystemExit(BENCHMARKS.main())
