"""`python -m reproduce`: the experiments of the paper, and the trainings of the project."""

from landmark.cli.program import Command, Program

COMMANDS = (
    Command("paper", "reproduce.paper:run", "train and measure what the paper compares, and write the tables"),
    Command("train", "reproduce.train:run", "train one model of the project by its name"),
    Command("trainings", "reproduce.train:run_list", "list the trainings that have a name"),
)

REPRODUCE = Program(
    "python -m reproduce",
    "The experiments of Mohtashami & Jaggi (2023), and the trainings of the project. Options without a command are\n"
    "those of `paper`.",
    COMMANDS,
    """\
  python -m reproduce --quick --out out
  python -m reproduce --data DATA --out out
  python -m reproduce train small_books --data DATA --out out/small_books""",
    default=COMMANDS[0],
)

if __name__ == "__main__":
    raise SystemExit(REPRODUCE.main())
