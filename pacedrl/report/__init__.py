"""A run's page: what its logs say, drawn, and what to change."""
