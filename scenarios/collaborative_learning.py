"""The workflow *collaborative learning*: a team learns a task together; what that gained is said only if measured.

::

    workflow = CollaborativeLearning(agents=[MetaLearningAgent(), AdaptationAgent(), StateModelingAgent()])
    result = await workflow.solve_task(task="HalfCheetah-v4", steps=20_000)
    print(result)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Final, Literal

import structlog

from agents.config import MEMBERS
from scenarios.observer import Observer, Observers, RunOutcome
from scenarios.own_agents import save_own_agents
from scenarios.recorders import EventLog, TensorboardLog
from scenarios.report import write_report
from scenarios.run_directory import RunDirectory, default_path, swarm_command
from scenarios.run_records import read_history
from scenarios.scenario import Scenario, preset_for
from scenarios.wiring import build_team
from swarm.agent import Agent
from swarm.errors import ConfigError, SwarmError

log = structlog.get_logger(__name__)

IDLE_SCORES: Final = {
    "HalfCheetah-v4": 0.0,
    "HalfCheetah-v5": 0.0,
    "Ant-v4": 1001.0,
    "Ant-v5": 995.0,
    "Humanoid-v4": 208.0,
    "Humanoid-v5": 198.0,
    "Walker2d-v4": 94.0,
    "Walker2d-v5": 93.0,
    "Hopper-v4": 150.0,
    "Hopper-v5": 149.0,
}
"""Mean return of never moving a motor: 20 episodes of Gymnasium's environments, reset with seeds 10 000 to 10 019."""

DEFAULT_TASK: Final = "HalfCheetah-v4"
DEFAULT_STEPS: Final = 20_000
NO_STRATEGIES: Final = "not analysed: this workflow trains; it does not look for strategies"


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """What the team's reported return is, compared with a baseline's, on the same task with the same steps.

    Attributes:
        value: in ``unit``: percent of the baseline's mean return, or the difference of the mean returns. Percent only
            where the baseline is above the idle score of its environment: below, a ratio says nothing.
        team_mean: mean return of the team's reported episodes.
        baseline_mean: mean return of the baseline's.
        source: what the baseline is, and where.
        interval: 95 % interval over seeds; ``None``: one seed each gives none.
    """

    value: float
    unit: Literal["percent", "return"]
    team_mean: float
    baseline_mean: float
    source: str
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        amount = f"{self.value:+.1f} %" if self.unit == "percent" else f"{self.value:+.1f} in return"
        spread = "one seed each, so no interval" if self.interval is None else f"95 % interval {self.interval}"
        return f"{amount} ({self.team_mean:.1f} against {self.baseline_mean:.1f}; {spread}) over {self.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollaborationResult:
    """What `CollaborativeLearning.solve_task` came to; printing it says what was measured and what was not.

    Attributes:
        outcome: how the run ended, and where its directory is.
        returns: reported episodes of the trained policy.
        distances: forward distance of each, in metres.
        improvement: ``None`` unless a baseline was measured.
        emergent_strategies: ``None``: see `NO_STRATEGIES`.
    """

    task: str
    mode: str
    outcome: RunOutcome
    returns: tuple[float, ...]
    distances: tuple[float, ...]
    improvement: Improvement | None = None
    emergent_strategies: int | None = None

    def __str__(self) -> str:
        not_measured = "not measured: pass baseline='run' or the directory of a finished run"
        strategies = NO_STRATEGIES if self.emergent_strategies is None else str(self.emergent_strategies)
        return "\n".join(
            (
                f"task:                {self.task}, {self.mode}, {self.outcome.env_steps} environment steps",
                f"return:              {fmean(self.returns):.1f} over {len(self.returns)} episodes, "
                f"distance {fmean(self.distances):.1f} m",
                f"improvement:         {self.improvement or not_measured}",
                f"emergent strategies: {strategies}",
                f"run directory:       {self.outcome.run_dir}",
            )
        )


class CollaborativeLearning:
    """Trains a team of agents on a task.

    Args:
        agents: specialists and agents of your own; none at all means the five specialists. A coordinator and an
            environment agent are added where they are missing, which is logged. The five go by the names of their
            roles; agents of your own only bid on work, they own no member.
        coordinator: the managing agent, if it is not among ``agents``.
        processes: worker processes that host the agents; 0: all in this process, next to a bridge process. Agents of
            your own can only be sent to processes if their class can be imported there.

    Raises:
        ConfigError: two agents of one name, or a specialist under another name than its role.
    """

    def __init__(self, agents: Sequence[Agent] = (), coordinator: Agent | None = None, *, processes: int = 0) -> None:
        given = [*([coordinator] if coordinator is not None else []), *agents]
        self._agents = complete_team(given)
        self._chosen = bool(given)
        self._processes = processes

    @property
    def agents(self) -> tuple[str, ...]:
        """Names of all agents that will take part."""
        return tuple(agent.name for agent in self._agents)

    async def solve_task(
        self,
        task: str | None = None,
        collaboration_mode: str | None = None,
        baseline: str | Path | None = None,
        *,
        steps: int | None = None,
        seed: int | None = None,
        scenario: Scenario | None = None,
        out: Path | None = None,
        observer: Observer | None = None,
    ) -> CollaborationResult:
        """Train on ``task`` for ``steps`` environment steps, all members together, and evaluate.

        Task, mode, steps and seed that are not given are those of ``scenario``, and without one HalfCheetah-v4,
        collaborative, 20 000 and 0. The agents are those of this workflow, or the scenario's if it was given none.

        Args:
            task: a Gymnasium id.
            collaboration_mode: how members work together, see ``agents.config.MODES``.
            steps: budget of environment steps.
            seed: of every random stream of the run.
            baseline: ``'run'``: train five members that exchange nothing for the same steps with the same seed, and
                compare; a run directory: compare with it; ``None``: no comparison.
            scenario: all other settings; by default the preset of the task's robot.
            out: run directory; by default a new one below ``runs/``.
            observer: hears of the run while it goes on.

        Raises:
            ConfigError: an unknown task or mode, or a baseline that cannot be compared.
            SwarmError: the run failed; what is committed can be resumed.
        """
        arm = self._scenario(scenario, task, collaboration_mode, steps, seed)
        compared = None
        if baseline not in (None, "run"):
            compared = RunDirectory.open(Path(str(baseline)))
            check_comparable(arm, compared)
        run, outcome = await self._train(arm, out, observer)
        if baseline == "run":
            rival = arm.with_overrides(["mode=independent"])
            rival = replace(rival, name=f"{rival.name}-independent"[:64])
            compared, _ = await CollaborativeLearning(processes=self._processes)._train(  # of the scenario's agents
                rival, out.with_name(f"{out.name}-independent") if out else None, observer
            )
        reported = read_history(run).evaluation["after"]
        return CollaborationResult(
            task=arm.team.env_id,
            mode=arm.team.mode,
            outcome=outcome,
            returns=tuple(reported["returns"]),
            distances=tuple(reported["distances"]),
            improvement=None if compared is None else measure_improvement(run, compared),
        )

    def _scenario(
        self, given: Scenario | None, task: str | None, mode: str | None, steps: int | None, seed: int | None
    ) -> Scenario:
        """Return what is run: what was asked for over the given scenario, or over the task's preset and defaults."""
        scenario = given
        if scenario is None:
            task, mode = task or DEFAULT_TASK, mode or "collaborative"
            steps, seed = DEFAULT_STEPS if steps is None else steps, seed or 0
            name = "".join(c for c in task.lower() if c.isalnum()) or "task"
            scenario = preset_for(task) or Scenario(name=name[:64])
        if task is not None:
            scenario = scenario.with_task(task)
        if self._chosen:
            scenario, _ = scenario.with_agents([agent.name for agent in self._agents if agent.role in MEMBERS])
        asked = {"mode": mode, "budget_steps": steps, "seed": seed, "processes": max(1, self._processes)}
        return scenario.with_overrides([f"{key}={value}" for key, value in asked.items() if value is not None])

    async def _train(
        self, scenario: Scenario, out: Path | None, observer: Observer | None
    ) -> tuple[RunDirectory, RunOutcome]:
        from scenarios.runner import run_scenario

        run = RunDirectory.create(out or default_path(scenario, datetime.now()), scenario)
        agents = configured(self._agents, scenario) if self._chosen else build_team(scenario)
        save_own_agents(run, agents, scenario)
        with EventLog(run) as events, TensorboardLog(run) as curves:
            outcome = await run_scenario(
                scenario,
                run.path,
                observer=Observers([events, curves, *([observer] if observer is not None else [])]),
                resume=False,
                agents=agents,
                inline=self._processes == 0,
            )
        if outcome.status == "failed":
            raise SwarmError(f"{outcome.reason}; continue with: {swarm_command()} resume {run.path}")
        write_report(run)
        return run, outcome


def complete_team(agents: Sequence[Agent]) -> list[Agent]:
    """Return ``agents`` with a coordinator and an environment agent; all five specialists where none is given."""
    import agents as specialists

    known: dict[str, type[Agent]] = {
        "coordinator": specialists.CoordinatorAgent,
        "environment": specialists.EnvironmentAgent,
        "state": specialists.StateModelingAgent,
        "meta": specialists.MetaLearningAgent,
        "adaptation": specialists.AdaptationAgent,
    }
    names = [agent.name for agent in agents]
    for agent in agents:
        if names.count(agent.name) > 1:
            raise ConfigError(f"two agents are called {agent.name!r}; give each its own name")
        if agent.role in MEMBERS and agent.name != agent.role:
            raise ConfigError(f"the {agent.role} agent is called {agent.name!r}; members go by the name of their role")
    if not agents:
        return [kind() for kind in known.values()]
    team = list(agents)
    for name in ("coordinator", "environment"):
        if name not in names:
            log.info("agent_added", agent=name, reason="no run works without it")
            team.append(known[name]())
    return team


def configured(agents: Sequence[Agent], scenario: Scenario) -> list[Agent]:
    """Return agents that know the scenario's team: the five built anew, others given options if they have none."""
    options = scenario.team.to_json()
    ready: list[Agent] = []
    for agent in agents:
        if agent.role in MEMBERS or not agent.options:
            ready.append(type(agent)(agent.name, options))
        else:
            ready.append(agent)
    return ready


def check_comparable(arm: Scenario, baseline: RunDirectory) -> None:
    """Raise ``ConfigError`` unless ``baseline`` is a finished run on the same task with the same steps."""
    team, other = arm.team, baseline.scenario().team
    for setting in ("env_id", "budget_steps", "task"):
        ours, theirs = getattr(team, setting), getattr(other, setting)
        if ours != theirs:
            raise ConfigError(f"baseline {baseline.path} has {setting} {theirs}, this run {ours}: not comparable")
    if "after" not in read_history(baseline).evaluation:
        raise ConfigError(
            f"baseline {baseline.path} has no final evaluation; first: {swarm_command()} resume {baseline.path}"
        )


def measure_improvement(run: RunDirectory, baseline: RunDirectory) -> Improvement:
    """Return how the reported episodes of two finished runs compare. Raises ``ConfigError`` where they cannot be."""
    check_comparable(run.scenario(), baseline)
    ours, theirs = (fmean(read_history(one).evaluation["after"]["returns"]) for one in (run, baseline))
    team = baseline.scenario().team
    exchange = "five members that exchange nothing" if team.mode == "independent" else f"mode {team.mode}"
    source = f"{exchange}, same {team.budget_steps} steps, seed {team.seed} ({baseline.path})"
    idle = IDLE_SCORES.get(team.env_id)
    relative = idle is not None and theirs > max(idle, 0.0)
    return Improvement(
        value=100.0 * (ours - theirs) / theirs if relative else ours - theirs,
        unit="percent" if relative else "return",
        team_mean=ours,
        baseline_mean=theirs,
        source=source,
    )
