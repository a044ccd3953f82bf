"""Seeds derived from names of their purpose, so that no generator state has to be saved or kept in step."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2^63) that depends on every part: ``derive_seed(run_seed, "sample", step, prompt_key)``."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
