"""The lab: how many rollouts does each method need, and how good are its estimates. Read plan, measures, results."""
