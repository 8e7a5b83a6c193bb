"""The page of `landmark view` in Chromium: its size, and the time to open it, to answer a click and to search.

Without a page to time, texts and reads are made up: the book of the package, repeated, and reads as a model of the
given shape leaves them, some blocks read often and most of them rarely.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import processor, spread
from benchmarks.options import ViewPageOptions
from landmark.assets import book_path
from landmark.cli.options import whole_numbers
from landmark.view.gather import ANSWER, DOCUMENT, PROMPT, Text, Token, View

LAYERS, HEADS, RETRIEVE, BLOCK = 30, 9, 4, 63  # of SmolLM2-135M, converted
CHARACTERS = 4.3  # of a token
WORD = "captain"  # searched
# From the click until its frame is on the screen: the timeout runs after the frame that follows.
CLICK = """async (token) => {
    const start = performance.now();
    document.querySelectorAll(".token")[token].click();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - start;
}"""
SEARCH = """async (word) => {
    const start = performance.now();
    document.querySelector("#query").value = word;
    document.querySelector("#search").requestSubmit();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - start;
}"""
GENERATED = "() => document.querySelectorAll('.token').length"
OPEN = "() => performance.getEntriesByType('navigation')[0].loadEventEnd"


def made_up(tokens: int, generated: int) -> View:
    """A view of a text of so many tokens."""
    rng = np.random.default_rng(0)
    book = book_path().read_text(encoding="utf-8")
    characters = int(tokens * CHARACTERS)
    text = _text("book", DOCUMENT, (book * (characters // len(book) + 1))[:characters], tokens, 0)
    prompt = _text(PROMPT, PROMPT, " Who was the captain of the Patna?", 9, text.stop)
    words = [f" word{number}" for number in range(generated)]
    ends = np.cumsum([len(word) for word in words])
    answer = Text(ANSWER, ANSWER, "".join(words), np.stack((np.r_[0, ends[:-1]], ends), 1), prompt.stop)
    shape = generated, LAYERS, HEADS, RETRIEVE
    often = rng.integers(0, tokens // BLOCK, 400)
    seldom = rng.integers(0, tokens // BLOCK, shape)
    blocks = np.where(rng.random(shape) < 0.6, often[np.minimum(399, rng.zipf(1.3, shape))], seldom)
    scores = rng.normal(0, 2, (*shape[:3], RETRIEVE + 1))
    scores[..., -1] += 3  # the local window
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    named = tuple(Token(answer.first + number, number, word, word) for number, word in enumerate(words))
    reads = blocks, weights[..., :-1], weights[..., -1]
    return View("made up", BLOCK, (text, prompt, answer), named, tuple(range(LAYERS)), *reads)


def _text(name: str, kind: str, text: str, tokens: int, first: int) -> Text:
    """A text cut into so many tokens of equal length."""
    edges = np.linspace(0, len(text), tokens + 1).astype(np.int64)
    return Text(name, kind, text, np.stack((edges[:-1], edges[1:]), 1), first)


def run(options: ViewPageOptions) -> Iterator[dict[str, Any]]:
    """A row for each page. Raises ValueError without Chromium or playwright, and for a page without tokens."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ValueError("playwright drives the browser: pip install playwright") from error
    browser = shutil.which("chromium")
    if browser is None:
        raise ValueError("chromium is not installed (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for path, tokens in _pages(options, Path(folder)):
            opened, clicks, searches, generated = [], [], [], 0
            for turn in range(options.rounds):
                page = chromium.new_page(viewport={"width": 1280, "height": 800})
                page.goto(path.as_uri())
                opened.append(page.evaluate(OPEN) / 1000)
                if not (generated := page.evaluate(GENERATED)):
                    raise ValueError(f"{path} has no generated token: give a page that `landmark view` wrote")
                chosen = np.random.default_rng(turn).integers(0, generated, 10).tolist()
                clicks += [page.evaluate(CLICK, token) / 1000 for token in chosen]
                searches.append(page.evaluate(SEARCH, WORD) / 1000)
                page.close()
            yield {
                "bench": "view",
                "machine": processor(),
                "browser": chromium.version,
                "page": None if tokens else path.name,
                "tokens": tokens,
                "generated": generated,
                "rounds": options.rounds,
                "bytes": path.stat().st_size,
                **{
                    f"{what}_{name}_s": getattr(spread(seconds), name)
                    for what, seconds in (("open", opened), ("click", clicks), ("search", searches))
                    for name in ("median", "maximum")
                },
            }


def _pages(options: ViewPageOptions, folder: Path) -> Iterator[tuple[Path, int | None]]:
    """Those that are given, or made-up ones in the folder, with the tokens of their texts."""
    for path in options.pages:
        if not path.is_file():
            raise ValueError(f"there is no page {path}: make one with `landmark view --out`")
        yield path.absolute(), None
    for tokens in whole_numbers("tokens", options.tokens) if not options.pages else ():
        made_up(tokens, options.generated).save(path := folder / f"{tokens}.html")
        yield path, tokens
