"""Names that clients give to documents. They are labels: no file of the server is ever called by one."""

import unicodedata

from landmark.serve.errors import bad_request

_LONGEST = 200
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # control and format characters, surrogates, what is unassigned


def document_name(given: str) -> str:
    """`given` without the folders before it and without characters that hide or turn text.

    Refusal where nothing is left.
    """
    last = given.replace("\\", "/").rstrip("/").rpartition("/")[2]
    name = "".join(letter for letter in last if unicodedata.category(letter) not in _HIDDEN).strip()[:_LONGEST]
    if not name.strip("."):
        raise bad_request("a document needs a name", "name")
    return name
