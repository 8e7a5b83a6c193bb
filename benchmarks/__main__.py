"""`python -m benchmarks`: every speed figure of the project."""

from landmark.cli.program import Command, Program

COMMANDS = (
    Command("ops", "benchmarks.commands:run_ops", "time attention beside causal attention"),
    Command("read", "benchmarks.commands:run_read", "time reading with a long text in memory"),
    Command("decode", "benchmarks.commands:run_decode", "time decoding over contexts of any length"),
    Command("index", "benchmarks.commands:run_index", "time search through landmark keys"),
)

BENCHMARKS = Program(
    "python -m benchmarks",
    "Time and memory beside full attention and beside what the machine can do, in one run on one machine.",
    COMMANDS,
    """\
  python -m benchmarks ops --threads 1
  python -m benchmarks decode --contexts 8192,131072 --batch-sizes 1,4 --plot decode.svg""",
)

if __name__ == "__main__":
    raise SystemExit(BENCHMARKS.main())
