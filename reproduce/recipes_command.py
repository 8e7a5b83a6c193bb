"""`landmark recipes`: the recipes of the package."""

from dataclasses import dataclass

from landmark.recipes.catalogue import RECIPES


@dataclass(frozen=True)
class RecipesOptions:
    """List the recipes of the package, what each trains and at which scale; docs/recipes.md tells more."""


def run(options: RecipesOptions) -> int:
    """Print the list."""
    width = max(len(entry.name) for entry in RECIPES)
    for entry in RECIPES:
        print(f"{entry.name:{width}}  {entry.summary}\n{'':{width}}  {entry.scale}")
    print("\nlandmark train --recipe NAME --out OUT [--data DIR] [--attention ...] trains one.")
    return 0
