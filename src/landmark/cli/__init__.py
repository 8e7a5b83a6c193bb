"""The ``landmark`` command.

``main.py`` holds the table of commands; each command lives in a module of its own, imported only when the
command is chosen. A command is a function ``run(options: Options) -> int``: the annotation names a dataclass
from which the command line is built (field docstrings become help texts), the result is the exit code. A
command module imports nothing heavy (torch, transformers) at its top, so that ``landmark COMMAND --help`` is
quick. A mistake of the user is a ``ValueError`` or ``OSError`` whose message is one sentence; ``main`` prints
it without a traceback.
"""
