"""Whether a mathematical answer equals the gold answer."""
