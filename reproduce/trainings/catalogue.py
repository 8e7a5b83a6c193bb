"""The trainings by name: a summary of each, its scale, and the function that returns its plan.

Light to import: a training is imported when it is chosen.
"""

import difflib
import inspect
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING

from landmark.training.options import flags, given_options

if TYPE_CHECKING:
    from landmark.training.plan import Plan
    from reproduce.trainings.options import NamedTraining


@dataclass(frozen=True)
class Entry:
    """A named training; `target` is the function that returns its plan ("module:function")."""

    name: str
    target: str
    summary: str
    scale: str


SMALL = "0.9 M parameters, 6.6 M tokens; 12 minutes of two CPU cores"
PAPER = "151 M parameters without embeddings, 15.7 G tokens; for GPUs"

TRAININGS = (
    Entry("small_books", "reproduce.trainings.small:small_books", "the paper's comparisons, on your books", SMALL),
    Entry("small_math", "reproduce.trainings.small:small_math", "the same on your mathematical texts", SMALL),
    Entry("paper_pg19", "reproduce.trainings.paper:paper_pg19", "the paper's own comparisons, on PG-19", PAPER),
    Entry("paper_arxiv", "reproduce.trainings.paper:paper_arxiv", "the same on the papers of the proof-pile", PAPER),
    Entry(
        "shipped_model",
        "reproduce.trainings.shipped_model:shipped_model",
        "the model in the package, on your books",
        "3.8 M parameters, 11.7 M tokens; minutes of a GPU",
    ),
    Entry(
        "smollm2_135m",
        "reproduce.trainings.smollm2:smollm2_135m",
        "SmolLM2-135M-Instruct by self-distillation, on your books",
        "135 M parameters, 4.9 M trained, 23 M tokens; minutes of a GPU",
    ),
)


def find(name: str) -> Entry:
    """The training of that name; raises ValueError with the nearest names where there is none."""
    for entry in TRAININGS:
        if entry.name == name:
            return entry
    names = [entry.name for entry in TRAININGS]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else f"trainings of the project are {', '.join(names)}"
    raise ValueError(f"there is no training {name!r}; {remedy}")


def plan_of(entry: Entry, options: "NamedTraining") -> "Plan":
    """The plan of a training, with the options of a command line.

    A training takes the options that its function has parameters for, and always the precision and those that change no
    parameter. Raises ValueError for any other option, and for a missing one.
    """
    from landmark.training.plan import FREE

    module, name = entry.target.split(":")
    make = getattr(import_module(module), name)
    parameters = inspect.signature(make).parameters
    left = given_options(options)
    del left["name"]
    taken = {name: left.pop(name) for name in parameters if name in left}
    free = {name: left.pop(name) for name in (*FREE, "precision") if name in left}
    if left:
        raise ValueError(
            f"the training {entry.name} does not take {flags(left)}: leave that out; it takes {flags(parameters)}"
        )
    missing = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [name for name in missing if name not in taken]:
        raise ValueError(f"the training {entry.name} needs {flags(missing)}: see --help")
    return replace(make(**taken), **free)
