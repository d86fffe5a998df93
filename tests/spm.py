"""The command line from compiled code, as an installed `spm` runs it.

Most tests have no need to compile the whole file at each call; those of the copied file do.
"""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from simple_process_manager import main  # noqa: E402

main()
