"""Updates of one member, many in one compiled call: batch, targets, critics, actor, temperature, optimiser.

Letters in this file: U updates, B batch, X inputs, A actions, K target critics, P parameters, R rows, W packed width.

The interpreter's lock is free meanwhile, and nothing here depends on threads or time. `tests/agents/learning` holds the
same update written with autograd, and compares single updates in float64 to 1e-9.

Sources: Haarnoja et al. 2018, arXiv:1812.05905 (losses, temperature); Chen et al. 2021, arXiv:2101.05982 (REDQ: minimum
over a random two of many target critics); Fujimoto et al. 2023, arXiv:2306.02451, section 4.2 (values of successors are
clamped to the range of past targets, updated every 250 updates); Kingma & Ba 2015, arXiv:1412.6980 (Adam); Bodnar et
al. 2020, arXiv:1906.09807 (PDERL: actions of peers are imitated where the own critics value them higher).
"""

from __future__ import annotations

import math
from typing import Final

from agents.learning.compiled import compiled, compiled_and_kept, inlined
from agents.learning.parameters import ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON
from agents.learning.passes import (
    Floats,
    Layers,
    actor_forward,
    actor_gradient,
    actor_head_gradient,
    actor_sample,
    add_pull,
    critic_action_gradient,
    critic_forward,
    critic_gradient,
    layers,
)
from agents.learning.update_state import (
    ACTOR_RESTART,
    ACTOR_STEPS,
    ALPHA_M,
    ALPHA_V,
    CRITIC_RESTART,
    CRITIC_STEPS,
    GUIDE_DISTANCE,
    GUIDE_UPDATES,
    GUIDE_WEIGHT,
    LOG_ALPHA,
    SEEN_HIGH,
    SEEN_LOW,
    SKIPPED,
    SUM_DISTANCE,
    SUM_ENTROPY,
    SUM_IMITATED,
    SUM_LOSS,
    SUM_VALUE,
    TARGET_HIGH,
    TARGET_LOW,
    Doubles,
    Draws,
    Integers,
    Nets,
    Peers,
    Settings,
    Sizes,
    Vectors,
    Work,
    Workspace,
)

CLAMP_PERIOD: Final = 250
GUIDE_PERIOD: Final = 250
GUIDE_RATIO: Final = 2.0
GUIDE_TOLERANCE: Final = 1.5
GUIDE_RANGE: Final = (2.0**-10, 2.0**10)
"""How the weight of guidance is adapted, as in P3S; the range is ours: P3S lets the weight double or halve for ever."""


@inlined
def _set_target(
    vectors: Vectors,
    scalars: Doubles,
    actor: Layers,
    noise: Floats,
    pair: Integers,
    sizes: Sizes,
    settings: Settings,
    work: Work,
) -> None:
    """Write r + γ · continues · clamp(min of two target critics − α log π) to ``work.target``."""
    t, zero = work.target.dtype.type, work.target.dtype.type(0)
    inputs, width = sizes.inputs, sizes.inputs + sizes.actions
    x = work.batch[:, width : 2 * width]
    actor_sample(actor, x[:, :inputs], noise, work.actor, work.common, x[:, inputs:])
    c1, c2 = sizes.critic_first, sizes.critic_second
    critic_forward(layers(vectors.targets[pair[0]], width, c1, c2, 1), x, work.pass_0, work.common, work.q_0)
    critic_forward(layers(vectors.targets[pair[1]], width, c1, c2, 1), x, work.pass_0, work.common, work.q_1)
    alpha, discount = t(math.exp(scalars[LOG_ALPHA])), t(settings.discount)
    low, high = t(scalars[TARGET_LOW]), t(scalars[TARGET_HIGH])
    for b in range(len(work.target)):
        value = work.q_1[b] if work.q_1[b] < work.q_0[b] else work.q_0[b]
        value -= alpha * work.actor.log_prob[b]
        value = low if value < low else high if value > high else value
        # A choice, not a product: a successor value that is not finite must not reach a terminated row.
        if not work.batch[b, 2 * width + 1] > zero:
            value = zero
        work.target[b] = work.batch[b, 2 * width] + discount * value


@inlined
def _update_critics(
    vectors: Vectors,
    scalars: Doubles,
    nets: Nets,
    sizes: Sizes,
    settings: Settings,
    work: Work,
    sums: Doubles,
) -> bool:
    """One step of both critics and their targets; skipped, counted and answered by false if not finite."""
    low, high = math.inf, -math.inf
    for b in range(len(work.target)):
        if not math.isfinite(work.target[b]):
            scalars[SKIPPED] += 1
            return False
        low, high = min(low, work.target[b]), max(high, work.target[b])
    x = work.batch[:, : sizes.inputs + sizes.actions]
    critic_forward(nets.critic_0, x, work.pass_0, work.common, work.q_0)
    _set_error(work.q_0, work.target, sums)
    critic_gradient(nets.critic_0, x, work.q_0, work.pass_0, work.common, nets.critic_gradient_0)
    critic_forward(nets.critic_1, x, work.pass_0, work.common, work.q_1)
    _set_error(work.q_1, work.target, sums)
    critic_gradient(nets.critic_1, x, work.q_1, work.pass_0, work.common, nets.critic_gradient_1)
    scalars[CRITIC_STEPS] += 1
    size = vectors.targets.shape[1]
    _adam(vectors, work.gradient, 0, 2 * size, scalars[CRITIC_STEPS] - scalars[CRITIC_RESTART], settings.learning_rate)
    rate = vectors.theta.dtype.type(settings.target_rate)
    for k in range(2):
        own, critic = vectors.targets[k], vectors.theta[k * size : (k + 1) * size]
        for p in range(size):
            own[p] += rate * (critic[p] - own[p])
    scalars[SEEN_LOW], scalars[SEEN_HIGH] = min(scalars[SEEN_LOW], low), max(scalars[SEEN_HIGH], high)
    if scalars[CRITIC_STEPS] % CLAMP_PERIOD == 0:
        scalars[TARGET_LOW], scalars[TARGET_HIGH] = scalars[SEEN_LOW], scalars[SEEN_HIGH]
    return True


@compiled
def _set_error(q: Floats, target: Floats, sums: Doubles) -> None:
    """Replace values by the gradient of half the mean squared error, and add up the metrics."""
    share = q.dtype.type(1.0 / len(q))
    loss, value = q.dtype.type(0), q.dtype.type(0)
    for b in range(len(q)):
        error = q[b] - target[b]
        loss += error * error
        value += q[b]
        q[b] = error * share
    sums[SUM_LOSS] += 0.5 * share * loss
    sums[SUM_VALUE] += 0.5 * share * value


@inlined
def _update_actor(
    vectors: Vectors,
    scalars: Doubles,
    nets: Nets,
    peers: Peers,
    rows: Integers,
    noise: Floats,
    sizes: Sizes,
    settings: Settings,
    work: Work,
    sums: Doubles,
) -> None:
    """Follow the minimum of the member's own two critics, and its peers; the batch's actions are overwritten."""
    t = work.batch.dtype.type
    inputs, width, batch = sizes.inputs, sizes.inputs + sizes.actions, len(work.batch)
    x = work.batch[:, :width]
    state, action = x[:, :inputs], x[:, inputs:]
    for b in range(batch):
        for j in range(sizes.actions):
            work.stored[b, j] = action[b, j]
    if settings.imitation > 0:  # by the critics that judge the own actions: the step just made has changed them
        critic_forward(nets.critic_0, x, work.pass_0, work.common, work.q_0)
        critic_forward(nets.critic_1, x, work.pass_1, work.common, work.q_1)
        for b in range(batch):
            work.q_stored[b] = min(work.q_0[b], work.q_1[b])
    actor_sample(nets.actor, state, noise, work.actor, work.common, action)
    log_prob = 0.0
    for b in range(batch):
        log_prob += work.actor.log_prob[b]
    log_prob /= batch
    if not math.isfinite(log_prob):
        scalars[SKIPPED] += 1
        return
    critic_forward(nets.critic_0, x, work.pass_0, work.common, work.q_0)
    critic_forward(nets.critic_1, x, work.pass_1, work.common, work.q_1)
    # A row's gradient goes through the lower critic only: the first fill `chosen` from the front.
    front, back, zero, share, imitated = 0, batch, t(0), t(-1.0 / batch), 0
    for b in range(batch):
        value = min(work.q_0[b], work.q_1[b])
        work.target[b] = share
        worth = settings.imitation > 0 and peers.foreign[rows[b]] == 1 and work.q_stored[b] > value
        work.weights[b] = t(settings.imitation / batch) if worth else zero
        imitated += worth
        if work.q_0[b] <= work.q_1[b]:
            work.chosen[front] = b
            front += 1
        else:
            back -= 1
            work.chosen[back] = b
    first, second, d_action = work.chosen[:front], work.chosen[front:], work.d_action
    critic_action_gradient(nets.critic_0, work.target[:front], first, work.pass_0, work.common, d_action)
    critic_action_gradient(nets.critic_1, work.target[front:], second, work.pass_1, work.common, d_action)
    actor_head_gradient(action, d_action, math.exp(scalars[LOG_ALPHA]) / batch, work.actor)
    if imitated > 0:
        add_pull(work.actor, work.stored, work.weights)
    if len(peers.guide) > 0:
        _follow_guide(peers, scalars, state, sizes, settings, work, sums)
    sums[SUM_IMITATED] += imitated / batch
    actor_gradient(nets.actor, state, work.actor, work.common, nets.actor_gradient)
    scalars[ACTOR_STEPS] += 1
    begin = 2 * vectors.targets.shape[1]
    _adam(
        vectors,
        work.gradient,
        begin,
        len(vectors.theta),
        scalars[ACTOR_STEPS] - scalars[ACTOR_RESTART],
        settings.learning_rate,
    )
    _update_temperature(scalars, log_prob, settings)
    sums[SUM_ENTROPY] -= log_prob


@inlined
def _follow_guide(
    peers: Peers, scalars: Doubles, state: Floats, sizes: Sizes, settings: Settings, work: Work, sums: Doubles
) -> None:
    """Pull the actor towards the best member's deterministic actions; now and then adapt how hard.

    The weight doubles while the member is farther from the best than max(ratio · how far the best itself went, least
    distance), with a tolerance, and halves while it is nearer: far enough to search, near enough to profit.

    Source: Jung, Park & Sung 2020, arXiv:2001.02907 (P3S), section 3, with D = ½ ‖difference of actions‖².
    """
    inputs, first, second, heads = sizes.inputs, sizes.actor_first, sizes.actor_second, 2 * sizes.actions
    actor_forward(layers(peers.guide, inputs, first, second, heads), state, work.guide, work.common)
    _squash(work.guide.head, work.aim)
    for b in range(len(work.weights)):
        work.weights[b] = settings.guidance * scalars[GUIDE_WEIGHT] / len(work.weights)
    add_pull(work.actor, work.aim, work.weights)
    distance = _distance(work.actor.head, work.aim)
    sums[SUM_DISTANCE] += distance
    scalars[GUIDE_DISTANCE] += distance
    scalars[GUIDE_UPDATES] += 1
    if scalars[GUIDE_UPDATES] == GUIDE_PERIOD:
        actor_forward(layers(peers.anchor, inputs, first, second, heads), state, work.guide, work.common)
        aimed = max(GUIDE_RATIO * _distance(work.guide.head, work.aim), settings.guidance_distance)
        distance = scalars[GUIDE_DISTANCE] / GUIDE_PERIOD
        if distance > aimed * GUIDE_TOLERANCE:
            scalars[GUIDE_WEIGHT] = min(2 * scalars[GUIDE_WEIGHT], GUIDE_RANGE[1])
        elif distance < aimed / GUIDE_TOLERANCE:
            scalars[GUIDE_WEIGHT] = max(0.5 * scalars[GUIDE_WEIGHT], GUIDE_RANGE[0])
        scalars[GUIDE_DISTANCE], scalars[GUIDE_UPDATES] = 0.0, 0.0
        for p in range(len(peers.guide)):
            peers.anchor[p] = peers.guide[p]


@compiled
def _squash(head: Floats, action: Floats) -> None:
    for b in range(action.shape[0]):
        for j in range(action.shape[1]):
            action[b, j] = math.tanh(head[b, j])


@compiled
def _distance(head: Floats, aim: Floats) -> float:
    """Return the batch's mean of ½ ‖tanh(mean) − aim‖²."""
    total = 0.0
    for b in range(aim.shape[0]):
        for j in range(aim.shape[1]):
            difference = float(math.tanh(head[b, j]) - aim[b, j])
            total += difference * difference
    return 0.5 * total / len(aim)


@compiled
def _adam(vectors: Vectors, gradient: Floats, begin: int, end: int, steps: float, learning_rate: float) -> None:
    """Step ``steps`` (from 1) of Adam on the parameters in [begin, end)."""
    t = gradient.dtype.type
    beta1, beta2, epsilon = t(ADAM_BETA1), t(ADAM_BETA2), t(ADAM_EPSILON)
    rest1, rest2 = t(1 - ADAM_BETA1), t(1 - ADAM_BETA2)
    rate = t(learning_rate / (1 - ADAM_BETA1**steps))
    root = t(1 / math.sqrt(1 - ADAM_BETA2**steps))
    g, theta = gradient[begin:end], vectors.theta[begin:end]
    m, v = vectors.m[begin:end], vectors.v[begin:end]
    for p in range(len(theta)):
        m[p] = beta1 * m[p] + rest1 * g[p]
        v[p] = beta2 * v[p] + rest2 * g[p] * g[p]
        theta[p] -= rate * m[p] / (math.sqrt(v[p]) * root + epsilon)


@inlined
def _update_temperature(scalars: Doubles, log_prob: float, settings: Settings) -> None:
    """One Adam step on −log α · (log π + target entropy), in double precision."""
    gradient = -(log_prob + settings.target_entropy)
    steps = scalars[ACTOR_STEPS] - scalars[ACTOR_RESTART]
    scalars[ALPHA_M] = ADAM_BETA1 * scalars[ALPHA_M] + (1 - ADAM_BETA1) * gradient
    scalars[ALPHA_V] = ADAM_BETA2 * scalars[ALPHA_V] + (1 - ADAM_BETA2) * gradient * gradient
    scale = math.sqrt(scalars[ALPHA_V] / (1 - ADAM_BETA2**steps)) + ADAM_EPSILON
    scalars[LOG_ALPHA] -= settings.learning_rate * (scalars[ALPHA_M] / (1 - ADAM_BETA1**steps)) / scale


@compiled_and_kept
def run_updates(
    vectors: Vectors,
    scalars: Doubles,
    packed: Floats,
    peers: Peers,
    draws: Draws,
    sizes: Sizes,
    settings: Settings,
    sums: Doubles,
    buffers: Workspace,
) -> None:
    """Make one update per batch of draws, in place.

    Args:
        vectors: the first two targets are the member's own and follow its critics; the others never change.
        scalars: `sac.Scalars` in order.
        packed: (R, W) rows of `replay.Replay`.
        sums: increased by each update's critic loss and mean value, and by each actor update's entropy, distance from
            the guide and share of rows imitated.
    """
    nets, work = buffers
    for u in range(len(draws.rows)):
        for b in range(draws.rows.shape[1]):
            row = draws.rows[u, b]
            for j in range(packed.shape[1]):
                work.batch[b, j] = packed[row, j]
        _set_target(vectors, scalars, nets.actor, draws.noise[u, 0], draws.pairs[u], sizes, settings, work)
        done = _update_critics(vectors, scalars, nets, sizes, settings, work, sums)
        if done and scalars[CRITIC_STEPS] % settings.policy_delay == 0:
            _update_actor(vectors, scalars, nets, peers, draws.rows[u], draws.noise[u, 1], sizes, settings, work, sums)
