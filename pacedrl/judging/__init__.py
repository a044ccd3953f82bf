"""The verb ``judge``: a verifier tried on completions that are there already."""
