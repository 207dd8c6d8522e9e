"""`python -m uniattn_pl`."""

import sys

from uniattn_pl.cli import main

sys.exit(main())
