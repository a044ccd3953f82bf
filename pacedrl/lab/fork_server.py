"""The fork server imports this module first, so that it ends with the comparison that started it."""

import os

from pacedrl.processes import die_with

PARENT = "PACEDRL_FORK_SERVER_OF"
"""Environment variable with the pid of the comparison; set only while it starts the server."""

_parent = os.environ.pop(PARENT, None)
if _parent == str(os.getppid()):
    die_with(os.getppid())
