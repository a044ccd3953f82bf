"""Rules that say what is wrong with a run and which setting to change, and the guide to them (symptoms.md)."""
