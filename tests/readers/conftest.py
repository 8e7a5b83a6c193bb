import sys
from pathlib import Path

# `reader_cases` and `families` are modules of helpers beside the tests, not packages.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "hf"))
