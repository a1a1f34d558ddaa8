"""`python -m edgevit` is the command `edgevit`."""

import sys

from edgevit.cli import main

sys.exit(main())
