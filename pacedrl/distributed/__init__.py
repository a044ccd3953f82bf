"""Several processes, on one machine or many: what each does, and what they tell each other."""
