"""`python -m deltaloom` is the program."""

import sys

from deltaloom._program import main

if __name__ == "__main__":
    sys.exit(main())
