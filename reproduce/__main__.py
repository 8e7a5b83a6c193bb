"""`python -m reproduce`: the experiments of the paper, the trainings of the project, and studies beside them."""

from landmark.cli.program import Command, Program

COMMANDS = (
    Command("paper", "reproduce.paper:run", "train and measure what the paper compares, and write the report"),
    Command("train", "reproduce.train:run", "train one model of the project by its name"),
    Command("trainings", "reproduce.train:run_list", "list the trainings that have a name"),
    Command("study convert-smollm2", "reproduce.studies.convert_smollm2:run", "convert SmolLM2 within a given time"),
    Command(
        "study untrained-perplexity",
        "reproduce.studies.untrained_perplexity:run",
        "perplexity right after conversion, before training",
    ),
    Command("study key-margins", "reproduce.studies.key_margins:run", "retrieval margins of passkeys in a context"),
    Command(
        "study group-landmarks",
        "reproduce.studies.group_landmarks:run",
        "recall of landmark keys for groups of blocks",
    ),
)

REPRODUCE = Program(
    "python -m reproduce",
    "The experiments of Mohtashami & Jaggi (2023), the trainings of the project, and studies beside them. Options\n"
    "without a command are those of `paper`.",
    COMMANDS,
    """\
  python -m reproduce --quick --out out
  python -m reproduce --data DATA --out out
  python -m reproduce train small_books --data DATA --out out/small_books""",
    default=COMMANDS[0],
)

if __name__ == "__main__":
    raise SystemExit(REPRODUCE.main())
