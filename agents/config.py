"""Everything about learning and teamwork that a scenario may set. Plain data: importing it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Final, TypeVar, cast

from swarm.environment import TaskParameters
from swarm.errors import ConfigError
from swarm.messages import Json

MEMBERS: Final = ("coordinator", "environment", "state", "meta", "adaptation")
"""Names of the five members, in the fixed order of every reduction."""

MODES: Final = ("collaborative", "independent")
ENCODERS: Final = ("ssm", "mlp", "lstm")
ADAPTED: Final = ("context", "head", "both", "all", "ridge")
AGGREGATIONS: Final = ("mean", "clipped_mean", "trimmed_mean", "geometric_median")
APPLIED: Final = ("averaged", "in_turn")
LEVELS: Final = ("context", "inner", "probe", "climb")
CURRICULA: Final = ("uniform", "progress")
ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberConfig:
    """Sizes of one member; 50 000-54 000 trainable parameters in all, targets excluded.

    Attributes:
        encoder: ``ssm``, the state-space encoder, or a control with as many parameters: ``mlp`` (memoryless), ``lstm``.
        projection: width of a linear layer in front of everything, for wide observations; 0: none.
        encoder_width: D, features that actor and critics see.
        encoder_states: N, complex diagonal states; the other encoders get as many parameters as that makes.
        feature_scale: factor on the features that actor and critics see. The encoder goes on learning under them: with
            1, Ant-v4 learns half as fast as without features; where a task can only be told from the past, use 1.
    """

    encoder: str = "ssm"
    projection: int = 0
    encoder_width: int = 32
    encoder_states: int = 32
    feature_scale: float = 0.1
    actor_hidden: tuple[int, int] = (64, 64)
    critic_hidden: tuple[int, int] = (112, 104)

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for an encoder that does not exist."""
        _check_choice("member.encoder", self.encoder, ENCODERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SacConfig:
    """Soft actor-critic; names as in Haarnoja et al. 2018, arXiv:1812.05905.

    Attributes:
        reward_scale: factor on rewards inside the critics, and the initial temperature. Behind a LayerNorm only the
            last layer can grow, by about one learning rate an update: values of hundreds are out of reach for too long.
        average_rate: the deployed actor is a running average of the trained one, towards which it moves by this share
            an update (Nikishin et al. 2018, weight averaging), n times at once after each lot of n; 0: the newest.
            Experience is always the newest one's.
        own_share: share of each batch from rows in which the member acted itself.
        pooled_targets: 2: the minimum over a random two of all eligible target critics; 1: own targets only.
        discounts: one per member in their fixed order, over again where they are fewer; empty: ``discount`` for all.
            Target critics are pooled, and votes heard, only within one discount.
        guidance: weight of soft guidance towards the best member's actions (P3S), times an adaptive factor; 0: none.
        guidance_distance: how near to the best a member is pulled at most: mean of half the squared difference.
        imitation: weight of imitating peers' actions where the own critics value them higher (PDERL); 0: none.
        reset_every: updates after which a member's networks are drawn afresh, at its turn, while its experience stays;
            0: never. ``reset_layers``: of how many of the three layers, counted from the output.
    """

    batch_size: int = 128
    learning_rate: float = 3e-4
    discount: float = 0.99
    reward_scale: float = 0.03125
    target_rate: float = 0.005
    target_entropy: float = -3.0
    policy_delay: int = 1
    average_rate: float = 0.0
    own_share: float = 0.35
    pooled_targets: int = 2
    discounts: tuple[float, ...] = ()
    guidance: float = 0.0
    guidance_distance: float = 0.03
    imitation: float = 0.0
    reset_every: int = 0
    reset_layers: int = 3

    def discount_of(self, place: int) -> float:
        """Return the discount of the member at a place of the team."""
        return self.discounts[place % len(self.discounts)] if self.discounts else self.discount


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """Shared encoder and dynamics model, its prediction loss and its meta-learning.

    Attributes:
        encoder_rate: learning rate of the encoder relative to that of the dynamics heads.
        gradients_per_round: minibatch gradients that each agent publishes in a round.
        windows_per_batch: windows of ``window`` steps behind each gradient.
        context_size: adaptable context of the dynamics heads (CAVIA/GrBAL).
        adapted: what the inner loop moves: ``context`` (CAVIA), ``head`` (the last layer, ANIL), ``both``, ``all``
            (context and every layer of the dynamics head, but how it reads the context; MAML), or ``ridge`` (the last
            layer by ridge regression with the precision 1 / ``inner_learning_rate``, without steps).
        inner_steps: gradient steps of the inner loop on the support set.
        learned_rates: whether the outer loop learns the inner learning rates, one for the context, one for the layers,
            starting from ``inner_learning_rate``.
        meta_order: 2: the outer gradient goes through the inner gradients; 1: it takes them as constants.
        aggregation: how the members' gradients of the shared encoder become one: ``mean`` by number of samples, or a
            rule that a wild sender cannot move: ``clipped_mean``, ``trimmed_mean``, ``geometric_median``.
        applied: ``averaged``: the g-th gradients of all members are combined into one step; ``in_turn``: each gradient
            is a step of its own.
        imagine_horizon: steps of the imagined rollouts that measure the world model.
        imagine_cut: disagreement of the heads, relative to the usual one, above which imagination ends.
    """

    window: int = 32
    learning_rate: float = 1e-3
    encoder_rate: float = 0.1
    hidden: int = 96
    gradients_per_round: int = 8
    windows_per_batch: int = 16
    context_size: int = 8
    adapted: str = "both"
    inner_learning_rate: float = 0.1
    inner_steps: int = 2
    learned_rates: bool = False
    meta_order: int = 2
    meta_tasks: int = 8
    meta_gradients_per_round: int = 2
    max_gradient_norm: float = 10.0
    aggregation: str = "mean"
    applied: str = "averaged"
    imagine_horizon: int = 8
    imagine_cut: float = 1.5

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for a choice that does not exist or does not go with another."""
        _check_choice("world.adapted", self.adapted, ADAPTED)
        _check_choice("world.aggregation", self.aggregation, AGGREGATIONS)
        _check_choice("world.applied", self.applied, APPLIED)
        if self.adapted == "ridge" and self.meta_order == 1 and self.learned_rates:
            raise ConfigError("a learned rate of world.adapted='ridge' takes the second order: use world.meta_order=2")
        if self.applied == "in_turn" and self.aggregation != "mean":
            raise ConfigError(
                f"world.aggregation={self.aggregation!r} compares senders, which applied='in_turn' never does: "
                "use applied='averaged'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundConfig:
    """How a round of work is cut.

    Attributes:
        steps: environment steps of one round, over all environments of the block.
        random_steps: environment steps with uniformly random actions at the start.
        updates_per_step: SAC updates of all members together per environment step.
        lot: updates per auctioned lot.
        max_share: largest share of the lots that one member can win.
        shifted_every: every how many rounds a stretch is collected under shifted dynamics as well; 0: never.
        shifted_steps: environment steps of that stretch.
        seat_steps: steps of the block after which members change seats where nobody bids for them.
        evaluate_every: rounds between evaluations of all members; 0: only at the end.
        evaluation_blocks: blocks of 8 selection episodes, whose seats go round among the members.
        evaluation_steps: length limit of evaluation episodes; ``None``: the environment's own.
        adapt_every: rounds between test-time adaptations; 0: never.
        adapt_steps: length of each probe episode.
        patience_s: after this long without an awaited message, the coordinator reports it missing.
    """

    steps: int = 200
    random_steps: int = 2_500
    updates_per_step: float = 5.0
    lot: int = 50
    max_share: float = 0.4
    concentration: float = 1.0
    shifted_every: int = 20
    shifted_steps: int = 400
    seat_steps: int = 1_000
    evaluate_every: int = 20
    evaluation_blocks: int = 1
    evaluation_steps: int | None = None
    adapt_every: int = 25
    adapt_steps: int = 200
    patience_s: float = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """Trials of a run on several tasks: several episodes under one task, over which the policy's memory lasts.

    Attributes:
        episodes: episodes of a trial.
        episode_steps: length limit of such an episode; a trial has ``episodes * episode_steps`` steps.
        train_tasks: how many tasks of the suite there are to train on.
        test_tasks: how many tasks of the suite are kept for the reported trials.
        curriculum: how the tasks of a trial are chosen: ``uniform`` (all of them in turn, in ever new orders) or
            ``progress`` (rather those near which returns change, see `agents.curriculum`).
        exploration: share of the choices by progress that is the same for all tasks.
    """

    episodes: int = 5
    episode_steps: int = 200
    train_tasks: int = 40
    test_tasks: int = 16
    curriculum: str = "uniform"
    exploration: float = 0.2

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for a curriculum that does not exist."""
        _check_choice("trials.curriculum", self.curriculum, CURRICULA)

    @property
    def steps(self) -> int:
        """Steps of one trial in one environment."""
        return self.episodes * self.episode_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptConfig:
    """Test-time adaptation to one task; every episode that it takes is counted.

    Attributes:
        level: how far it goes: ``context`` (the encoder's memory lasts over episodes), ``inner`` (and the dynamics head
            adapts, by which actions are looked ahead), ``probe`` (and one short probe chooses among the members and the
            incumbent with its adapting head), ``climb`` (and an evolution strategy climbs in gain and bias of the
            actions).
        episodes: K, episodes of each environment of the block before the re-evaluation.
        online: whether the dynamics head adapts at every step instead of between episodes.
        evaluation_blocks: blocks of 8 episodes of re-evaluation, without and with what was adapted.
        transitions: newest transitions of each environment that the inner loop sees.
        reach: how far from the actor's action, along one axis, an action is looked ahead.
        sigma: spread of the candidates of the climb.
    """

    level: str = "climb"
    episodes: int = 3
    online: bool = False
    evaluation_blocks: int = 2
    transitions: int = 32
    reach: float = 0.3
    sigma: float = 0.15

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for an unknown level, or one that takes more episodes."""
        _check_choice("adapt.level", self.level, LEVELS)
        if self.level == "climb" and self.episodes < 2:
            raise ConfigError(
                f"level climb takes at least 2 episodes, one to probe and one to climb; got {self.episodes}"
            )
        if self.level == "context" and self.online:
            raise ConfigError(
                "level context adapts nothing at a step, and online goes with inner, probe or climb: choose one of "
                "these, or online=false or --no-online"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultConfig:
    """Named interventions: topic ``replace`` carries each payload's content of the round before, ``stop`` nothing."""

    replace: str = ""
    stop: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamConfig:
    """What every agent of a run knows: the options that a node passes to ``Agent(options=…)``.

    Attributes:
        learners: the agents whose members act and train; empty: all of them. One name is the arm 'one agent'.
        train_tasks: what the environments are asked to do, one trial after the other; empty: ``task``, always.
        test_tasks: what the reported trials of such a run ask for.
    """

    env_id: str = "HalfCheetah-v4"
    task: TaskParameters = field(default_factory=TaskParameters)
    train_tasks: tuple[TaskParameters, ...] = ()
    test_tasks: tuple[TaskParameters, ...] = ()
    seed: int = 0
    mode: str = "collaborative"
    budget_steps: int = 20_000
    reproducible: bool = True
    report_episodes: int = 10
    agents: tuple[str, ...] = MEMBERS
    learners: tuple[str, ...] = ()
    member: MemberConfig = field(default_factory=MemberConfig)
    sac: SacConfig = field(default_factory=SacConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    rounds: RoundConfig = field(default_factory=RoundConfig)
    trials: TrialConfig = field(default_factory=TrialConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)

    @property
    def members(self) -> tuple[str, ...]:
        """The agents that own a member, in the fixed order of every reduction; further agents only bid on work."""
        return tuple(name for name in MEMBERS if name in self.agents and name in (self.learners or MEMBERS))

    def discount_of(self, member: str) -> float:
        """Return the discount with which a member's critics judge."""
        return self.sac.discount_of(self.members.index(member))

    @property
    def specialists(self) -> tuple[str, ...]:
        """The agents that can train a member, their own or another's."""
        return tuple(name for name in MEMBERS if name in self.agents and name != "coordinator")

    @property
    def trains_world(self) -> bool:
        """Whether somebody aggregates gradients of the world model and somebody applies them."""
        return "meta" in self.agents and "state" in self.agents

    def to_json(self) -> dict[str, Json]:
        """JSON-like form; `from_json` gives an equal object back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> TeamConfig:
        """Rebuild from `to_json`. Raises ``ConfigError`` for an unknown key."""
        nested = {
            "task": TaskParameters,
            "member": MemberConfig,
            "sac": SacConfig,
            "world": WorldConfig,
            "rounds": RoundConfig,
            "trials": TrialConfig,
            "adapt": AdaptConfig,
            "faults": FaultConfig,
        }
        values: dict[str, object] = {
            key: _build(nested[key], value) if key in nested and isinstance(value, Mapping) else value
            for key, value in data.items()
        }
        for key in ("train_tasks", "test_tasks"):
            tasks = cast(Sequence[Mapping[str, Json]], values.get(key, ()))
            values[key] = [_build(TaskParameters, task) for task in tasks]
        return _build(cls, values)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def _build(cls: type[ConfigT], data: Mapping[str, object]) -> ConfigT:
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise ConfigError(f"unknown {cls.__name__} key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})
