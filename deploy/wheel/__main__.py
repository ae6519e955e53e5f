"""``python -m tokenstream``."""

import sys

from tokenstream import main

sys.exit(main())
