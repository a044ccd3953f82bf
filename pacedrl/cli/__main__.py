"""``python -m pacedrl.cli``, for ``torchrun`` and ``accelerate launch``."""

import sys

from pacedrl.cli import main

sys.exit(main())
