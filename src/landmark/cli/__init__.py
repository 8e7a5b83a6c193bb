"""The ``landmark`` command.

``main.py`` holds the table of commands; the module of a command is imported only when the command is chosen. A command
is a function ``run(options: Options) -> int``: ``options`` is a dataclass from which the command line is built (field
docstrings become help texts, nested dataclasses and ``GROUPS`` become groups of options), the result is the exit code.
A command module imports nothing heavy (torch, transformers) at its top, so that ``landmark COMMAND --help`` is quick. A
user's mistake is a ``ValueError`` or ``OSError`` whose message is one sentence; ``program.py``, shared with
``benchmarks`` and ``reproduce``, prints it without a traceback.
"""
