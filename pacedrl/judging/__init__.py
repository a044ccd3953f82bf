"""The verb ``judge``: try a verifier on existing completions."""
