"""Several runs of `landmark train`, one after another in the same processes, which saves starting them anew each time.

The one argument is a JSON list of lists of options.
"""

import json
import sys

from landmark.cli.main import main

if __name__ == "__main__":
    for options in json.loads(sys.argv[1]):
        code = main(["train", *options])
        if code:
            raise SystemExit(code)
