"""Real parts for tests: simulations with seeded faults and checks of invariants. Nothing here is used in a run."""
