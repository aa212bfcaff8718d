"""python -m armd.cli"""

import sys

from armd.cli import main

if __name__ == "__main__":
    sys.exit(main())
