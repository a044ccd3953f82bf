"""pacedrl: reinforcement learning with verifiable rewards, paced by a learned partition function."""

__version__ = "0.1.0"
