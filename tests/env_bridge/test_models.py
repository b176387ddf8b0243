"""Models from outside: the good ones give the same bits, the bad ones one line each, and none harms this process."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Final

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from env_bridge import BridgeVectorEnv
from env_bridge.compiling import ModelLimits
from env_bridge.models import ASSETS, check_model, explain, find_model, load_model, load_robot_model
from env_bridge.robots import robot_for
from env_bridge.robots.anatomy import Robot
from swarm.errors import ConfigError

BALL: Final = "<body><freejoint/><geom size='.1'/></body>"
LAUGHS: Final = "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12))
SPRING: Final = "<joint type='slide' stiffness='1e12' springref='1e9'/><geom size='.1'/>"


def world(content: str, before: str = "") -> str:
    return f"<mujoco>{before}<worldbody>{content}</worldbody></mujoco>"


CORPUS: Final = {
    "empty": ("", "does not compile: ParseXML: empty file"),
    "cut off": ("<mujoco><worldbody><body>", "does not compile: XML parse error"),
    "another language": ("<html><body>404</body></html>", "Unrecognized XML model type: 'html'"),
    "unknown element": (world("<bod/>"), "unrecognized element"),
    "nested too deep": (world("<body>" * 10_000 + "</body>" * 10_000), "nesting is too deep"),
    "no mesh file": (world("<geom type='mesh' mesh='m'/>", "<asset><mesh name='m' file='no.stl'/></asset>"), "no.stl"),
    "includes itself": ("<mujoco><include file='model.xml'/></mujoco>", "already included"),
    "massless": (world("<body><joint/></body>"), "mass and inertia of moving bodies must be larger"),
    "100 GB of memory": (world(BALL, "<size memory='100G'/>"), "needs more than 2048 MiB to compile"),
    "2 GB of memory": (world(BALL, "<size memory='1G'/>"), "asks for 1024 MiB of memory for each environment"),
    "contacts without end": (world(BALL, "<size nconmax='2000000000'/>"), "needs more than 2048 MiB to compile"),
    "a million bodies": (world(f"<replicate count='1000000'>{BALL}</replicate>"), "took more than 1 s of processor"),
    "gravity is no number": (world(BALL, "<option gravity='nan 0 0'/>"), "diverges at rest, in physics step 1 of 20"),
    "explodes": (world(f"<body>{SPRING}</body>", "<option timestep='1'/>"), "diverges at rest, in physics step"),
    "time stands still": (world(BALL, "<option timestep='0'/>"), "has a time step of 0 s"),
}


@pytest.mark.parametrize("name", CORPUS)
def test_bad_model_is_refused_in_one_line_that_names_the_file(name: str, tmp_path: Path) -> None:
    text, expected = CORPUS[name]
    path = tmp_path / "model.xml"
    path.write_text(text, encoding="utf-8")
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ConfigError) as error:
        load_model(str(path), ModelLimits(cpu_s=1 if "million" in name else 20))
    message = str(error.value)
    assert expected in message, message
    assert str(path) in message
    assert "\n" not in message
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert list(tmp_path.iterdir()) == [path]


def test_entities_that_multiply_are_never_expanded(tmp_path: Path) -> None:
    doctype = f"<!DOCTYPE mujoco [<!ENTITY a0 'ha'>{LAUGHS}]>"
    (tmp_path / "model.xml").write_text(doctype + f"<mujoco model='&a11;'><worldbody>{BALL}</worldbody></mujoco>")
    assert load_model(str(tmp_path / "model.xml"), ModelLimits(memory_bytes=1 << 30)).nbody == 2


def bits(model: mujoco.MjModel) -> bytes:
    buffer = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


@pytest.mark.parametrize("name", ["ant.xml", "humanoid.xml"])
def test_model_from_outside_has_the_bits_of_compiling_it_here(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "mine.xml"
    copy.write_bytes((ASSETS / name).read_bytes())
    assert bits(load_model(str(copy))) == bits(load_model(name)) == bits(mujoco.MjModel.from_xml_path(str(copy)))


@pytest.mark.parametrize(
    ("xml_file", "message"),
    [
        ("ant.xm", "Gymnasium has no model 'ant.xm'; .* the name of one of Gymnasium's: ant.xml"),
        ("no/such.xml", "Gymnasium has no model"),
        ("./ant.xml", "model file './ant.xml' is not there, or no file"),
        ("/dev/zero", "'/dev/zero' is not there, or no file"),
        ("~/a\0b.xml", "is not there, or no file"),
    ],
)
def test_file_that_is_not_there_is_named_with_the_nearest_of_gymnasium(xml_file: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_model(xml_file)


def test_path_that_leaves_the_assets_is_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_text("robot")
    with pytest.raises(ConfigError, match="does not compile"):
        load_model(str(ASSETS / os.path.relpath(path, ASSETS)))


def test_large_source_is_refused_before_a_process_is_started(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_bytes(b" " * 2048)
    with pytest.raises(ConfigError, match="expected at most 0; is it a model"):
        load_model(str(path), ModelLimits(source_bytes=1024))


def test_large_compiled_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    texture = "<asset><texture type='2d' name='t' builtin='flat' width='1024' height='1024'/></asset>"
    path.write_text(world(BALL, texture))
    with pytest.raises(ConfigError, match="has 3 MiB once compiled, expected at most 1"):
        load_model(str(path), ModelLimits(model_bytes=1 << 20))


@pytest.mark.parametrize(
    ("code", "text", "message"),
    [
        (-signal.SIGSEGV, "", "ended the compiling process with signal 11"),
        (-signal.SIGXCPU, "", "took more than 20 s of processor time"),
        (1, "Traceback\nImportError: no", "ended the compiling process with exit code 1"),
        (2, f"WARNING: x\nerror: {'y' * 9999}\n", "y…"),
    ],
)
def test_end_of_the_compiling_process_is_told_in_one_short_line(code: int, text: str, message: str) -> None:
    told = explain(code, text, ModelLimits())
    assert told is not None
    assert message in told
    assert "\n" not in told
    assert len(told) < 500


def robot(env_id: str) -> Robot:
    found = robot_for(env_id)
    assert found is not None
    return found


def test_robot_lives_in_its_own_model_and_in_a_copy_of_it(tmp_path: Path) -> None:
    copy = tmp_path / "mine.xml"
    copy.write_bytes((ASSETS / "ant.xml").read_bytes())
    for xml_file in ("ant.xml", str(copy)):
        assert load_robot_model(replace(robot("Ant-v4"), xml_file=xml_file)).nbody == 14


def test_model_without_actuators_is_refused() -> None:
    model = mujoco.MjModel.from_xml_string(world(BALL))
    with pytest.raises(ConfigError, match="HalfCheetah cannot live in the model 'model': it has no actuators"):
        check_model(replace(robot("HalfCheetah-v4"), xml_file="model"), model)


@pytest.mark.parametrize(
    ("env_id", "changes", "message"),
    [
        (
            "Ant-v5",
            {"main_body": "leg"},
            r"Ant cannot live in the model 'ant.xml': Invalid name 'leg'\. Valid names: .*",
        ),
        ("Ant-v5", {"main_body": 99}, r"Invalid index 99\. Valid indices from 0 to 13"),
        ("Hopper-v5", {"xml_file": "inverted_pendulum.xml"}, r"\(this one has 3 bodies and 2 positions\)"),
        ("Humanoid-v5", {"xml_file": "inverted_pendulum.xml"}, "Humanoid cannot live in the model"),
    ],
)
def test_model_without_what_the_robot_reads_is_refused(
    env_id: str, changes: dict[str, str | int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_robot_model(replace(robot(env_id), **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["HalfCheetah", "Ant", "Humanoid", "Walker2d", "Hopper"])
def test_every_robot_lives_in_gymnasiums_model_of_it(name: str) -> None:
    for version in (4, 5):
        assert load_robot_model(robot(f"{name}-v{version}")).nu > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_own_model_of_a_class_that_is_no_robot_gives_gymnasiums_bits(workers: int, tmp_path: Path) -> None:
    path = tmp_path / "mine.xml"
    path.write_text((ASSETS / "swimmer.xml").read_text().replace('density="1000"', 'density="900"'))
    ours = BridgeVectorEnv("Swimmer-v5", 3, workers=workers, xml_file=str(path))
    theirs = SyncVectorEnv([lambda: gymnasium.make("Swimmer-v5", xml_file=str(path))] * 3)
    np.testing.assert_array_equal(ours.reset(seed=0)[0], theirs.reset(seed=0)[0])
    theirs.action_space.seed(0)
    for _ in range(20):
        action = theirs.action_space.sample()
        for got, wanted in zip(ours.step(action)[:4], theirs.step(action)[:4], strict=True):
            np.testing.assert_array_equal(got, wanted)
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.xml", "does not compile: XML parse error"),
        ("large.xml", "asks for 1024 MiB of memory for each environment"),
        ("ball.xml", r"Reacher-v5 cannot live in the model '.*ball\.xml'"),
        ("missing.xml", "'.*missing.xml' is not there, or no file"),
    ],
)
def test_own_model_that_a_class_cannot_have_is_refused_in_one_line(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.xml").write_text("<mujoco><worldbody><body>")
    (tmp_path / "large.xml").write_text(world(BALL, "<size memory='1G'/>"))
    (tmp_path / "ball.xml").write_text(world(BALL))
    with pytest.raises(ConfigError, match=message) as caught:
        BridgeVectorEnv("Reacher-v5", 1, xml_file=str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("xml_file", "message"), [("swimer.xml", "Gymnasium has no model"), (3, "as text")])
def test_model_of_a_class_that_is_no_file_is_refused(xml_file: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BridgeVectorEnv("Swimmer-v5", 1, xml_file=xml_file)
