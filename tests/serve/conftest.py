"""A tiny model that can chat, a context that it has read, and a server of both."""

import sys
from pathlib import Path

import pytest

for needed in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "httpx", "openai"):
    pytest.importorskip(needed, reason="the extra serve, and clients to try it")

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "evaluation")]


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """A tiny converted model with a chat template, and its tokenizer."""
    from tiny_reader import save_chat

    import landmark
    from landmark.hf.tokenizer import load_tokenizer

    folder = save_chat(tmp_path_factory.mktemp("tiny"))
    model = landmark.from_pretrained(folder)
    return model, load_tokenizer(folder, model)


@pytest.fixture(scope="session")
def library(reader, tmp_path_factory):
    """The folder of a context of two documents."""
    from tiny_reader import TEXT

    from landmark import Context

    path = tmp_path_factory.mktemp("contexts") / "library"
    with Context.create(path, *reader) as context:
        context.append(TEXT[:2000], "one.txt")
        context.append("keys and ships 0123456789 . he spoke of it . " * 20, "two.txt")
    return path


@pytest.fixture(scope="module")
def served(reader, library, tmp_path_factory):
    """A server that was given the context, and keeps others."""
    from serving import running

    with running(*reader, data=tmp_path_factory.mktemp("data"), given={"library": library}) as found:
        yield found
