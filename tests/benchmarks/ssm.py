"""The state-space layer beside recurrent and state-space layers of other packages, and acting with a whole team.

A layer of 64 inputs and 64 outputs, forward and backward, batch 16, gradients at weights and inputs, float32. Each
takes the state it is usually given: ours and S5 32 complex numbers, GRU and LSTM 64 real ones (an LSTM also as many
cells), Mamba 128 channels of 16. A turn is several passes, as in training, where one follows the other.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from timing import interleave

from agents.config import MEMBERS, MemberConfig, WorldConfig
from agents.learning import ssm
from agents.learning.encoder import columns_from_arrays, encode_stream
from agents.learning.normalizer import normalizer_from_rows
from agents.learning.parameters import ParameterLayout
from agents.learning.world_state import encoder_parameters, init_world
from agents.member import acting_weights, init_member
from agents.rollout_policy import MemberPolicy, SeatedPolicy, build_policy
from swarm.policy import BLOCK_SIZE, PolicyInput

WIDTH, STATES, BATCH = 64, 32, 16
PASSES = {64: 4, 256: 2, 1024: 1}
BUDGET_S = 6.0
MAMBA_STEPS = 64  # 256 steps take it seconds a pass
OBSERVATION, ACTION, ENVIRONMENTS = 17, 6, 16
STREAM_STEPS = 2_500


def measure(threads: int) -> dict[str, Any]:
    """Return seconds of a pass by sequence length and layer, and how many times longer the others take than ours."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    s5, mambapy = peer("s5", "s5-pytorch"), peer("mambapy.mamba", "mambapy")
    measurements: dict[str, Any] = {
        "layer": {"inputs": WIDTH, "outputs": WIDTH, "batch": BATCH, "passes_s": {}, "parameters": {}},
    }
    ratios: dict[str, dict[str, float | None]] = {}
    for num_steps, passes in PASSES.items():
        found = layers(num_steps, s5)
        measurements["layer"]["parameters"] |= {name: number for name, (_, number) in found.items()}
        turns = {name: repeated(run, passes) for name, (run, _) in found.items()}
        seconds = {name: value / passes for name, value in interleave(turns, budget_s=BUDGET_S).items()}
        measurements["layer"]["passes_s"][str(num_steps)] = seconds
        ratios[str(num_steps)] = {
            f"vs_{name}": seconds[name] / seconds["ours"] if name in seconds else None
            for name in ("gru", "lstm", "s5_pytorch")
        }
    if mambapy is not None:
        block = mambapy.MambaBlock(mambapy.MambaConfig(d_model=WIDTH, n_layers=1))
        inputs = torch.randn(BATCH, MAMBA_STEPS, WIDTH, requires_grad=True)
        turn = {"mambapy": lambda: block(inputs).sum().backward()}
        measurements["layer"]["passes_s"][str(MAMBA_STEPS)] |= interleave(turn, budget_s=1.0, min_repeats=3)
        measurements["layer"]["parameters"]["mambapy"] = size_of(block)
    measurements |= acting_steps()
    measurements["stream_of_20000_rows_s"] = stream()
    return {"measurements": measurements, "ratios": ratios}


def peer(module: str, package: str) -> ModuleType | None:
    """Import a package that we are measured beside; say how to get it where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError:
        sys.stderr.write(f"{package} is not installed: pip install -e '.[bench]'\n")
        return None


def layers(num_steps: int, s5: ModuleType | None) -> Mapping[str, tuple[Callable[[], object], int]]:
    """Return a pass of each layer and its number of parameters."""
    layout = ParameterLayout(shapes=ssm.shapes(WIDTH, STATES, WIDTH))
    flat = torch.zeros(layout.size)
    ssm.init(layout.views(flat), torch.Generator().manual_seed(0))
    ours = {name: value.clone().requires_grad_() for name, value in layout.views(flat).items()}
    inputs = torch.randn(num_steps, BATCH, WIDTH, requires_grad=True)
    batch_first = inputs.detach().transpose(0, 1).contiguous().requires_grad_()
    keep, state = torch.ones(num_steps, BATCH, dtype=torch.bool), torch.zeros(BATCH, 2 * STATES)
    upper = torch.randn(num_steps, BATCH, WIDTH)
    upper_first = upper.transpose(0, 1).contiguous()
    found = {
        "ours": (lambda: ssm.layer(ours, inputs, keep, state)[0].backward(upper), layout.size),
    }
    modules: dict[str, torch.nn.Module] = {"lstm": torch.nn.LSTM(WIDTH, WIDTH), "gru": torch.nn.GRU(WIDTH, WIDTH)}
    for name, module in modules.items():
        found[name] = (lambda module=module: module(inputs)[0].backward(upper), size_of(module))
    if s5 is not None:
        block = s5.S5(WIDTH, STATES)
        found["s5_pytorch"] = (lambda: block(batch_first).backward(upper_first), size_of(block))
    return found


def size_of(module: torch.nn.Module) -> int:
    """Return the number of real parameters."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in module.parameters())


def repeated(run: Callable[[], object], passes: int) -> Callable[[], None]:
    """Return a call of several passes."""

    def turn() -> None:
        for _ in range(passes):
            run()

    return turn


def team_columns() -> dict[str, np.ndarray]:
    """Return made-up rows of HalfCheetah's sizes."""
    rng, shape = np.random.default_rng(0), (STREAM_STEPS, BLOCK_SIZE)
    return {
        "observation": rng.standard_normal((*shape, OBSERVATION)).astype(np.float32),
        "next_observation": rng.standard_normal((*shape, OBSERVATION)).astype(np.float32),
        "action": rng.uniform(-1, 1, (*shape, ACTION)).astype(np.float32),
        "reward": rng.standard_normal(shape).astype(np.float32),
        "terminated": np.zeros(shape, np.bool_),
        "reset": rng.random(shape) < 1e-3,
    }


def acting_steps() -> dict[str, float]:
    """Return the seconds of one step of 16 environments, by the members, sharing an encoder, that act in each.

    In a run each environment is one member's: 16 rows, given block by block or at once. Where all five act in each,
    there are 80 rows.
    """
    arrays, config = team_columns(), MemberConfig()
    scales = normalizer_from_rows(arrays["observation"], arrays["reward"], arrays["next_observation"]).scales()
    encoder = encoder_parameters(init_world(WorldConfig(), config, OBSERVATION, ACTION, seed=0))
    weights = {
        name: acting_weights(init_member(config, OBSERVATION, ACTION, seed), encoder, scales)
        for seed, name in enumerate(MEMBERS)
    }
    shared = build_policy(
        {f"{name}/{key}": value for name, arrays in weights.items() for key, value in arrays.items()},
        {"seats": [MEMBERS[e % len(MEMBERS)] for e in range(BLOCK_SIZE)]},
    )
    seats = [name for name in MEMBERS for _ in range(ENVIRONMENTS)]
    everywhere = SeatedPolicy({name: MemberPolicy(w) for name, w in weights.items()}, seats, random=False)
    few, many = (made_input(number, shared.state_size) for number in (ENVIRONMENTS, len(seats)))
    blocks = [few.rows(slice(first, first + BLOCK_SIZE)) for first in range(0, ENVIRONMENTS, BLOCK_SIZE)]
    turns = {
        "step_of_16_environments_of_one_member_each_by_blocks_s": lambda: [shared.act(block) for block in blocks],
        "step_of_16_environments_of_one_member_each_s": lambda: shared.act(few),
        "step_of_16_environments_of_5_members_each_s": lambda: everywhere.act(many),
    }
    return interleave(turns, budget_s=1.0)


def made_input(number: int, state_size: int) -> PolicyInput:
    """Return what a policy is given of ``number`` made-up environments in the middle of their episodes."""
    rng = np.random.default_rng(0)
    sizes = {"observation": OBSERVATION, "state": state_size, "noise": ACTION}
    drawn = {name: rng.standard_normal((number, size)).astype(np.float32) for name, size in sizes.items()}
    reward = rng.standard_normal(number).astype(np.float32)
    return PolicyInput(reset=np.zeros(number, np.bool_), reward=reward, **drawn)


def stream() -> float:
    """Return the seconds that the encoder takes for 20 000 rows and their successors."""
    arrays = team_columns()
    scales = normalizer_from_rows(arrays["observation"], arrays["reward"], arrays["next_observation"]).scales()
    world = init_world(WorldConfig(), MemberConfig(), OBSERVATION, ACTION, seed=0)
    columns, encoder = columns_from_arrays(arrays, STREAM_STEPS), encoder_parameters(world)
    run = {"stream": lambda: encode_stream(world.sizes.encoder, encoder, columns, scales)}
    return interleave(run, budget_s=1.0)["stream"]
