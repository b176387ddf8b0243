"""A run is data: team, task, budget, mode, seed."""
