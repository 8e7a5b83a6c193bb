"""`python -m reproduce`: the experiments of the paper, the trainings of the project, and studies beside them."""

from landmark.cli.program import Command, Program
from reproduce.studies import options


def _study(name: str, options: type, summary: str) -> Command:
    return Command(f"study {name}", f"reproduce.studies.{name.replace('-', '_')}:run", summary, options)


COMMANDS = (
    Command("paper", "reproduce.paper:run", "train and measure what the paper compares, and write the report"),
    Command("train", "reproduce.train:run", "train one model of the project by its name"),
    Command("trainings", "reproduce.train:run_list", "list the trainings that have a name"),
    _study("convert-smollm2", options.ConvertOptions, "convert SmolLM2 within a given time"),
    _study("smollm2-perplexity", options.PerplexityOptions, "what a conversion loses on text"),
    _study("smollm2-chat", options.ChatOptions, "what a conversion changes in ordinary chat"),
    _study("smollm2-questions", options.QuestionsOptions, "questions about a book it read at length"),
    _study("smollm2-library", options.LibraryOptions, "questions about a million tokens of documents"),
    _study("conversion-cost", options.ConversionCostOptions, "what converting larger models takes, reckoned"),
    _study("untrained-perplexity", options.UntrainedOptions, "perplexity right after conversion"),
    _study("reading-apart", options.ReadingApartOptions, "documents read apart beside reading in sequence"),
    _study("recall-tables", options.RecallTablesOptions, "recall beside baselines, in one table"),
    _study("source-ranking", options.SourceRankingOptions, "how early a source states what was asked for"),
    _study("key-margins", options.KeyMarginsOptions, "retrieval margins of passkeys in a context"),
    _study("group-landmarks", options.GroupLandmarksOptions, "recall of landmark keys for groups of blocks"),
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
