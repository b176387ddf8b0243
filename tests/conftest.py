"""One BLAS thread, as in every process of a swarm, set before anything imports torch; and plain tracebacks in logs."""

import os

import structlog

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

# Drawing a traceback with all its variables takes seconds once large libraries are loaded, and tests wait for it.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)
