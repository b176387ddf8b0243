"""Train a team on HalfCheetah-v4 and print what came out: ``python -m scenarios.examples.getting_started [steps]``."""

from __future__ import annotations

import asyncio
import sys

from agents import AdaptationAgent, MetaLearningAgent, StateModelingAgent
from scenarios import CollaborativeLearning


async def main(steps: int) -> None:
    """Name the specialists that should take part; coordinator and environment agent join by themselves."""
    workflow = CollaborativeLearning(agents=[MetaLearningAgent(), AdaptationAgent(), StateModelingAgent()], processes=2)
    print("agents:", ", ".join(workflow.agents))
    result = await workflow.solve_task(task="HalfCheetah-v4", collaboration_mode="collaborative", steps=steps)
    print(result)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
