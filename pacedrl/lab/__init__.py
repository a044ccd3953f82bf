"""Compares how many rollouts methods need, and how accurate their estimates are. Read plan, measures and results."""
