import sys
from pathlib import Path

# `store_cases` is a module of helpers beside these tests, not a package.
sys.path.insert(0, str(Path(__file__).parent))
