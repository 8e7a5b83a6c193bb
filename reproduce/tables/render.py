"""The report: `results.md` and its plots, rendered from measurements."""

import textwrap
from collections import Counter
from pathlib import Path

from reproduce.tables import tables
from reproduce.tables.claims import CLAIMS
from reproduce.tables.names import NOT_MEASURED, ONE_SEED, number
from reproduce.tables.results import Line, Results
from reproduce.tables.tables import TABLES, Table
from reproduce.tables.verdicts import FAILED, HELD, NO_DIFFERENCE, UNDECIDED, UNTESTED, VERDICTS

WIDTH = 120
FIGURES = "figures"  # the folder of the plots, beside results.md

QUICK = """> **QUICK: TOY STEP COUNTS.** {count} of {all} measurements were made with `--quick`. They show that all
> runs, and nothing about any method: no figure or verdict below means anything.
"""

READING = f"""\
Perplexities are means over seeds, taken in nats a token, with 95 % confidence intervals in brackets: Student's t of the
scatter over seeds, or, marked {ONE_SEED}, of the windows of the only seed. Intervals of seeds say how far other
trainings would differ on the same texts. Shares have Wilson's interval of their prompts, or that of the seeds where it
is wider. The paper's numbers are of one run each, of a model of 12 layers and width 1,024, and of other texts: compare
how they move, not how high they are.
"""

CLAIMING = f"""\
Perplexities are compared by their differences token by token where these were measured, otherwise by seed. A claim
"{HELD}" or "{FAILED}" where the whole interval says so. "{NO_DIFFERENCE}" is a null: the interval has zero in it,
whatever the claim allows. "{UNDECIDED}": the interval has the claim's bound in it. "{UNTESTED}": figures are missing.
"""


def check_plots() -> None:
    """Raises ValueError, before anything is measured, if plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"the report needs {error.name}: pip install 'landmark-attention[benchmarks]'") from error


def render(results: Results, out: str | Path) -> None:
    """Writes `results.md` into the folder `out`, and its plots into `figures/` there; both may be there already.

    Raises ValueError without matplotlib.
    """
    check_plots()
    out = Path(out)
    (out / FIGURES).mkdir(parents=True, exist_ok=True)
    drawn = _draw(results, out / FIGURES)
    sections = [_head(results), _claims(results), *(_section(table, results, drawn) for table in TABLES)]
    (out / "results.md").write_text(_wrapped("\n".join(sections)), encoding="utf-8")


def _wrapped(report: str) -> str:
    """The report with lines of prose of at most `WIDTH` characters; tables, headings and plots keep theirs."""
    lines = []
    for line in report.split("\n"):
        if len(line) <= WIDTH or line.startswith(("|", "#", "!")):
            lines.append(line)
            continue
        indent = "  " if line.startswith("- ") else "> " if line.startswith("> ") else ""
        lines += textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def _draw(results: Results, folder: Path) -> dict[str, list[str]]:
    """Draws what was measured; by table, the Markdown that shows it."""
    from reproduce.tables.plots import PLOTS, save

    shown: dict[str, list[str]] = {}
    for plot in PLOTS:
        figure = plot.draw(results)
        if figure is None:
            text = f"Plot of {plot.text}: {NOT_MEASURED}.\n"
        else:
            save(figure, folder / f"{plot.name}.png")
            text = f"![{plot.text}]({FIGURES}/{plot.name}.png)\n"
        shown.setdefault(plot.table, []).append(text)
    return shown


def _head(results: Results) -> str:
    lines = results.lines
    quick = [line for line in lines if line.get("quick")]
    scale = [
        f"- Measurements: {len(lines):,}, in `{results.path.name}`",
        f"- Scale: models of {_values(lines, 'parameters')} parameters; {_values(lines, 'steps')} steps of training; "
        f"seeds {_values(lines, 'seed')}",
        f"- Machine: {_values(lines, 'machine')}",
        f"- Date: {_values(lines, 'date')}",
    ]
    loud = [QUICK.format(count=len(quick), all=len(lines))] if quick else []
    return "\n".join(["# Results\n", *loud, *scale, "", READING])


def _values(lines: list[Line], field: str) -> str:
    """All values of a field, in order."""
    values = {line[field] for line in lines if line.get(field) is not None}
    return ", ".join(number(value) for value in sorted(values)) or "(unknown)"


def _claims(results: Results) -> str:
    outcomes = [(claim, claim.judge(results)) for claim in CLAIMS]
    counts = Counter(outcome.verdict for _, outcome in outcomes)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    head = ["## Claims\n", f"{summary}.\n", CLAIMING]
    if any(line.get("quick") for line in results.lines):
        head.append("**Of toy step counts (`--quick`): the verdicts mean nothing.**\n")
    rows = [f"- **{outcome.verdict}**: {claim.sentence}. ({outcome.figures})" for claim, outcome in outcomes]
    return "\n".join([*head, *rows, ""])


def _section(table: Table, results: Results, drawn: dict[str, list[str]]) -> str:
    about = [f"{table.about}\n"] if table.about else []
    return "\n".join([f"## {table.title}\n", *about, tables.markdown(table, results), *drawn.get(table.id, [])])
