"""`landmark`: the commands of the package."""

from collections.abc import Sequence

from landmark.cli.examples import ALL, EXAMPLES
from landmark.cli.program import Command, Program

COMMANDS = (
    Command("demo", "landmark.cli.demo:run", "find a passkey hidden in a book, with the model in the package"),
    Command("chat", "landmark.cli.chat:run", "ask about documents in plain language, and see where answers come from"),
    Command("read", "landmark.cli.read:run_read", "read texts into a context on disk"),
    Command("append", "landmark.cli.read:run_append", "add texts to a context"),
    Command("add", "landmark.cli.collections:run_add", "add texts to a collection, or replace some"),
    Command("remove", "landmark.cli.collections:run_remove", "remove documents from a collection"),
    Command("ask", "landmark.cli.ask:run", "continue a prompt after a context or a text, and show where it looked"),
    Command("retrieve", "landmark.cli.retrieve:run", "rank the passages of a context for a query, without generating"),
    Command("serve", "landmark.cli.serve:run", "answer questions about contexts over OpenAI's protocol"),
    Command("view", "landmark.cli.view:run", "show what was read for each token of an answer, as a page or a figure"),
    Command("contexts ls", "landmark.cli.contexts:run_ls", "list contexts"),
    Command("contexts info", "landmark.cli.contexts:run_info", "what a context holds, and how much"),
    Command("contexts verify", "landmark.cli.contexts:run_verify", "check every committed byte of a context"),
    Command("contexts delete", "landmark.cli.contexts:run_delete", "delete a context"),
    Command("contexts export", "landmark.cli.contexts:run_export", "write a context to one file"),
    Command("train", "landmark.cli.train:run", "train from scratch, or teach landmarks to a model"),
    Command("tokenizer train", "landmark.cli.train:run_tokenizer", "train a byte-level BPE tokenizer on texts"),
    Command("eval passkey", "landmark.cli.eval:run_passkey", "find passkeys hidden in long texts"),
    Command("eval recall", "landmark.cli.recall:run_recall", "answer questions about facts hidden in long texts"),
    Command("eval ruler", "landmark.cli.recall:run_ruler", "the tasks of RULER at any length"),
    Command("eval perplexity", "landmark.cli.eval:run_perplexity", "perplexity of texts read through memory"),
    Command("eval retrieval", "landmark.cli.retrieval:run", "rank passages of books by landmarks and by others"),
)

LANDMARK = Program(
    "landmark",
    "Landmark attention: a language model that reads texts of any length and looks up any part of them.",
    COMMANDS,
    ALL,
    EXAMPLES,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``landmark`` with ``argv`` (default: the arguments of the process) and return its exit code."""
    return LANDMARK.main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
