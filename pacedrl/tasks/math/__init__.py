"""The verifiers ``math`` and ``numeric``: compare an answer with the gold answer."""
