"""The page of a run: plots of its logs, the problems found in them, and what to change."""
