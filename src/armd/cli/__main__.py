"""python -m armd.cli"""

import sys

from armd.cli import main

sys.exit(main())
