"""MuJoCo behind a process boundary."""
