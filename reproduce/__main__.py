"""`python -m reproduce`: the experiments of the paper, the trainings of the project, and studies beside them."""

from landmark.cli.program import Command, Program

STUDIES = "reproduce.studies.commands"
COMMANDS = (
    Command("paper", "reproduce.paper:run", "train and measure what the paper compares, and write the report"),
    Command("train", "reproduce.train:run", "train one model of the project by its name"),
    Command("trainings", "reproduce.train:run_list", "list the trainings that have a name"),
    Command("study convert-smollm2", f"{STUDIES}:run_convert_smollm2", "convert SmolLM2 within a given time"),
    Command("study smollm2-perplexity", f"{STUDIES}:run_smollm2_perplexity", "what a conversion loses on text"),
    Command("study smollm2-chat", f"{STUDIES}:run_smollm2_chat", "what a conversion changes in ordinary chat"),
    Command("study smollm2-questions", f"{STUDIES}:run_smollm2_questions", "questions about a book it read at length"),
    Command("study conversion-cost", f"{STUDIES}:run_conversion_cost", "what converting larger models takes, reckoned"),
    Command("study untrained-perplexity", f"{STUDIES}:run_untrained_perplexity", "perplexity right after conversion"),
    Command("study reading-apart", f"{STUDIES}:run_reading_apart", "documents read apart beside reading in sequence"),
    Command("study recall-tables", f"{STUDIES}:run_recall_tables", "recall beside baselines, in one table"),
    Command("study source-ranking", f"{STUDIES}:run_source_ranking", "how early a source states what was asked for"),
    Command("study key-margins", f"{STUDIES}:run_key_margins", "retrieval margins of passkeys in a context"),
    Command("study group-landmarks", f"{STUDIES}:run_group_landmarks", "recall of landmark keys for groups of blocks"),
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
