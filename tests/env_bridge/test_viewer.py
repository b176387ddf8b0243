"""Pictures of a vector environment are Gymnasium's to the pixel; where GL is missing, one line says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from env_bridge import BridgeVectorEnv, check_rendering
from env_bridge.models import ASSETS
from swarm.errors import ConfigError

UNAVAILABLE = check_rendering()
needs_gl = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
SMALL: Final[dict[str, Any]] = {"render_mode": "rgb_array", "width": 96, "height": 64}


@pytest.fixture
def _backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gymnasium takes GLFW where nothing is said, even without a screen."""
    from env_bridge.render import find_backend

    backend = find_backend()
    if backend is not None:
        monkeypatch.setenv("MUJOCO_GL", backend)


@needs_gl
@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(
    ("env_id", "workers"), [("HalfCheetah-v4", 0), ("Ant-v5", 2), ("Hopper-v5", 0), ("Reacher-v5", 0), ("Pusher-v5", 2)]
)
def test_pictures_are_gymnasiums_after_resets_and_steps(env_id: str, workers: int, mode: AutoresetMode) -> None:
    ours = BridgeVectorEnv(env_id, 2, workers=workers, autoreset_mode=mode, max_episode_steps=6, **SMALL)
    theirs = SyncVectorEnv([lambda: gymnasium.make(env_id, max_episode_steps=6, **SMALL)] * 2, autoreset_mode=mode)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    theirs.action_space.seed(0)
    for step in range(9):
        if step in (0, 1, 5, 6, 7, 8):
            for mine, right in zip(ours.render(), theirs.render(), strict=True):
                np.testing.assert_array_equal(mine, right)
        action = theirs.action_space.sample()
        ours.step(action)
        theirs.step(action)
    ours.close()
    theirs.close()


@needs_gl
def test_a_restored_state_is_drawn_where_it_is() -> None:
    env = BridgeVectorEnv("Hopper-v5", 2, **SMALL)
    env.reset(seed=0)
    first = env.render()
    state = env.get_state()
    for _ in range(20):
        env.step(np.ones((2, 3), np.float32))
    moved = env.render()
    assert np.abs(moved[0].astype(int) - first[0].astype(int)).max() > 50
    env.set_state(state)
    for mine, right in zip(env.render(), first, strict=True):
        np.testing.assert_array_equal(mine, right)
    env.close()


@needs_gl
def test_a_model_of_ones_own_is_drawn_as_it_was_loaded_under_limits(tmp_path: Path) -> None:
    own = tmp_path / "red.xml"
    own.write_text((ASSETS / "hopper.xml").read_text().replace('rgba="0.8 0.6 .4 1"', 'rgba="1 0 0 1"'))
    env = BridgeVectorEnv("Hopper-v5", 1, xml_file=str(own), **SMALL)
    env.reset(seed=0)
    own.write_text("what is not there any more when the first picture is drawn is said in one line")
    with pytest.raises(ConfigError, match="does not compile"):
        env.render()
    own.write_text((ASSETS / "hopper.xml").read_text().replace('rgba="0.8 0.6 .4 1"', 'rgba="1 0 0 1"'))
    pixels = env.render()[0].astype(int)
    assert ((pixels[..., 0] > 100) & (pixels[..., 1] < 50) & (pixels[..., 2] < 50)).sum() > 20
    env.close()


def test_drawing_without_gl_is_one_line_again_and_again_and_ends_no_process() -> None:
    program = (
        "import os, numpy as np\n"
        "from env_bridge import BridgeVectorEnv\n"
        "from swarm.errors import ConfigError\n"
        "os.environ['MUJOCO_GL'] = 'glfw'\n"
        "os.environ.pop('DISPLAY', None)\n"
        "env = BridgeVectorEnv('HalfCheetah-v5', 1, render_mode='rgb_array')\n"
        "env.reset(seed=0)\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        env.render()\n"
        "    except ConfigError as error:\n"
        "        assert chr(10) not in str(error)\n"
        "        print(error)\n"
        "env.step(np.zeros((1, 6), np.float32))\n"
        "env.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("install the Debian package libosmesa6") == 2
