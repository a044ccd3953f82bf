"""Runs of several processes, on one machine or several: collectives, a shared scheduler and sharded weights."""
