"""What is said of committed bytes that are not there, or not as they were written."""

from pathlib import Path


class Damage(ValueError):
    """Something wrong with a file of a context; raised where it is met, and listed by `checking.verify`."""

    def __init__(self, file: Path, what: str) -> None:
        super().__init__(f"{file} {what}; take the context from a copy, or read the text again")
        self.file = file
        self.what = what
