"""``python -m pacedrl.cli``, which ``torchrun`` and ``accelerate launch`` start."""

import sys

from pacedrl.cli import main

sys.exit(main())
