"""The mathematics of learning: pure functions over parameters and batches. No event loop, no files, no clock."""
