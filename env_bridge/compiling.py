"""Compiling a model file under limits: ``python -m env_bridge.compiling``, the child process of `env_bridge.models`.

A model from outside may name a file of any size, repeat a body a million times or meet a defect of the compiler. All of
that happens here, in a process that has little to lose: its memory, processor time and files are limited, it ends with
its parent, and it leaves a compiled model (MJB) only if the model also survives its first steps.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import mujoco
import numpy as np

from swarm.errors import ConfigError
from swarm.lifeline import die_with_parent

TRIAL_STEPS: Final = 20
GRACE_S: Final = 2
"""Between the signal that a process out of processor time can be recognised by, and the one that it cannot escape."""
DIVERGENCE: Final = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What a model from outside may take.

    Attributes:
        source_bytes: size of the file that is named; meshes and included files do not count.
        memory_bytes: address space of the compiling process.
        cpu_s: processor time for compiling and for the first steps.
        wall_s: time on the clock, for a file system that hangs.
        model_bytes: the compiled model.
        data_bytes: what each environment allocates, MuJoCo's arena (``<size memory=…/>``) included.
    """

    source_bytes: int = 64 * MIB
    memory_bytes: int = 2048 * MIB
    cpu_s: int = 20
    wall_s: int = 120
    model_bytes: int = 256 * MIB
    data_bytes: int = 256 * MIB


def check_sizes(model: mujoco.MjModel, limits: ModelLimits) -> None:
    """Raise ``ConfigError`` for a model that is too large, before anything is allocated for an environment."""
    size = mujoco.mj_sizeModel(model)
    if size > limits.model_bytes:
        raise ConfigError(
            f"has {size / MIB:.0f} MiB once compiled, expected at most {limits.model_bytes // MIB}; "
            "use coarser meshes, textures and height fields"
        )
    if model.narena > limits.data_bytes:
        raise ConfigError(
            f"asks for {model.narena / MIB:.0f} MiB of memory for each environment, expected at most "
            f"{limits.data_bytes // MIB}; lower memory, njmax and nconmax of <size>, or remove bodies"
        )
    if not (np.isfinite(model.opt.timestep) and model.opt.timestep > 0):
        raise ConfigError(f"has a time step of {model.opt.timestep:g} s, expected a number above 0")


def try_steps(model: mujoco.MjModel) -> None:
    """Step the resting model a little. Raises ``ConfigError`` where it diverges."""
    data = mujoco.MjData(model)
    for number in range(1, TRIAL_STEPS + 1):
        mujoco.mj_step(model, data)
        if data.warning.number[DIVERGENCE].any() or not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
            raise ConfigError(
                f"diverges at rest, in physics step {number} of {TRIAL_STEPS} that are tried; expected finite motion: "
                "take a smaller timestep, softer stiffness, or move apart what overlaps"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """The child: exit code 0 with the compiled model written, or 2 with one line ``error: …``."""
    parser = argparse.ArgumentParser(prog="python -m env_bridge.compiling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process to end with")
    parser.add_argument("--input", type=Path, required=True, help="MJCF file")
    parser.add_argument("--output", type=Path, required=True, help="MJB file to write")
    for name, value in asdict(ModelLimits()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    given = parser.parse_args(arguments)
    die_with_parent(given.parent)
    limits = ModelLimits(**{name: getattr(given, name) for name in asdict(ModelLimits())})
    _confine(limits)
    mujoco.set_mju_user_warning(lambda text: None)  # what a warning means is decided from the model and its first steps
    try:
        model = mujoco.MjModel.from_xml_path(str(given.input))
        check_sizes(model, limits)
        try_steps(model)
        mujoco.mj_saveModel(model, str(given.output), None)
    except ConfigError as error:
        return _refuse(str(error))
    except MemoryError:
        return _refuse(_out_of_memory(limits))
    except Exception as error:  # the compiler's errors have many types; each is about the file
        text = " ".join(str(error).split())
        if "allocate memory" in text or "unknown exception" in text:  # the second is the bindings' name for bad_alloc
            return _refuse(_out_of_memory(limits))
        return _refuse(f"does not compile: {text}; expected an MJCF model that this version of MuJoCo reads")
    return 0


def _confine(limits: ModelLimits) -> None:
    """Limit this process; it can raise none of them again."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.model_bytes, limits.model_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + GRACE_S))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))


def _out_of_memory(limits: ModelLimits) -> str:
    return f"needs more than {limits.memory_bytes // MIB} MiB to compile; lower its sizes and repetitions"


def _refuse(text: str) -> int:
    sys.stderr.write(f"error: {text}\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
