"""`made`, `faults` and `killing` are modules of helpers beside these tests, not a package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
