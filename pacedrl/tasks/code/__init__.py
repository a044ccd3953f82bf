"""Whether code passes tests, run in a sandbox."""
