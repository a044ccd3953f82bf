"""Seeds derived from what they are for, so that there is no generator state to save or to get out of step."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on every part, e.g. ``derive_seed(run_seed, "sample", step, prompt_key)``."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
