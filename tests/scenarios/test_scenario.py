from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.scenario import KNOWN_TASKS, Scenario, list_presets, load_preset, load_scenario, preset_for
from scenarios.toml_text import to_toml
from scenarios.validation import RANGES, settings_of
from swarm.errors import ConfigError

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs",))),
)
TABLES = st.recursive(
    st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), SCALARS | st.lists(SCALARS, max_size=4)),
    lambda inner: st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner | SCALARS, max_size=4),
    max_leaves=8,
)


@given(TABLES)
def test_what_is_written_as_toml_reads_back_equal(data: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(data)) == data


@pytest.mark.parametrize("name", list_presets())
def test_preset_is_named_like_its_file_and_survives_toml(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert Scenario.from_mapping(tomllib.loads(preset.to_toml())) == preset


def test_the_presets_are_what_they_promise() -> None:
    assert {"ant", "halfcheetah", "humanoid", "smoke", *SUITE_PRESETS} <= set(list_presets())
    found = {
        name: (load_preset(name).team.env_id, load_preset(name).team.sac.target_entropy)
        for name in ("halfcheetah", "ant", "humanoid")
    }
    assert found == {
        "halfcheetah": ("HalfCheetah-v4", -3.0),
        "ant": ("Ant-v4", -4.0),
        "humanoid": ("Humanoid-v4", -2.0),
    }
    assert load_preset("halfcheetah").team.budget_steps == 20_000


SUITE_PRESETS = {
    "halfcheetah-vel": ("HalfCheetah-v4", "halfcheetah-vel"),
    "halfcheetah-dir": ("HalfCheetah-v4", "halfcheetah-dir"),
    "halfcheetah-shift": ("HalfCheetah-v4", "shift-train"),
    "ant-dir": ("Ant-v4", "ant-dir"),
    "ant-goal": ("Ant-v4", "ant-goal"),
    "humanoid-dir": ("Humanoid-v4", "humanoid-dir"),
}


@pytest.mark.parametrize("name", SUITE_PRESETS)
def test_presets_on_several_tasks_train_and_test_on_different_ones(name: str) -> None:
    scenario = load_preset(name)
    team = scenario.team
    robot = preset_for(team.env_id)
    assert robot is not None
    assert (team.env_id, scenario.suite) == SUITE_PRESETS[name]
    assert (replace(team.member, feature_scale=1.0), team.sac.target_entropy) == (
        replace(robot.team.member, feature_scale=1.0),
        robot.team.sac.target_entropy,
    )
    assert team.member.feature_scale == 1.0
    assert (len(team.train_tasks), len(team.test_tasks)) == (40, 16)
    if name != "halfcheetah-dir":  # two headings, both for training
        assert not set(team.train_tasks) & set(team.test_tasks)


def test_test_tasks_are_the_same_for_every_seed_and_training_tasks_are_not() -> None:
    preset = load_preset("halfcheetah-vel")
    other = preset.with_overrides(["seed=1", "task.gravity=2"])
    assert [task.velocity for task in other.team.test_tasks] == [task.velocity for task in preset.team.test_tasks]
    assert not set(other.team.train_tasks) & set(preset.team.train_tasks)
    assert {task.gravity for task in (*other.team.train_tasks, *other.team.test_tasks)} == {2.0}
    assert Scenario.from_mapping(tomllib.loads(other.to_toml())) == other


def test_tasks_that_the_suite_implies_cannot_be_written_by_hand() -> None:
    with pytest.raises(ConfigError, match=r"team\.test_tasks cannot be set"):
        Scenario.from_mapping({"name": "x", "team": {"test_tasks": []}})


def test_every_number_of_a_scenario_has_a_range_and_every_range_a_number() -> None:
    numeric = {path for path, hint in settings_of(Scenario) if "int" in str(hint) or "float" in str(hint)}
    assert numeric == set(RANGES)


def test_settings_that_toml_cannot_unset_default_to_unset() -> None:
    """TOML has no null: a setting left out reads as its default, so an optional one must default to ``None``."""
    for path, hint in settings_of(Scenario):
        if "None" in str(hint):
            value: object = Scenario(name="x")
            for part in path.split("."):
                value = getattr(value, part)
            assert value is None, path


def test_overrides_are_typed_by_their_setting() -> None:
    changed = load_preset("smoke").with_overrides(
        [
            "sac.learning_rate=1e-3",
            "team.rounds.lot=30",
            "processes=4",
            "video=true",
            "rounds.evaluation_steps=none",
            "member.actor_hidden=32, 16",
            "task.velocity=2",
            "name=trial",
        ]
    )
    assert changed.team.sac.learning_rate == 1e-3
    assert (changed.team.rounds.lot, changed.processes, changed.video) == (30, 4, True)
    assert changed.team.rounds.evaluation_steps is None
    assert changed.team.member.actor_hidden == (32, 16)
    assert isinstance(changed.team.task.velocity, float)
    assert changed.name == "trial"
    assert Scenario.from_mapping(tomllib.loads(changed.to_toml())) == changed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sac.lerning_rate=1", "unknown setting 'sac.lerning_rate'; did you mean 'sac.learning_rate'?"),
        ("learning_rate=1", "did you mean 'sac.learning_rate' or 'world.learning_rate'?"),
        ("lerning_rat=1", "did you mean 'sac.learning_rate'"),
        ("gravty=1", "did you mean 'task.gravity'?"),
        ("x=1", "unknown setting 'x'; the scenario.toml of any run directory lists all settings"),
        ("sac.learning_rate=fast", "team.sac.learning_rate is 'fast'; expected a number"),
        ("sac.learning_rate=nan", "team.sac.learning_rate is nan; expected a finite number"),
        ("sac.learning_rate=-inf", "team.sac.learning_rate is -inf; expected a finite number"),
        ("sac.learning_rate=0", "team.sac.learning_rate is 0.0; expected more than 0 and at most 1"),
        ("seed=1.5", "team.seed is '1.5'; expected an integer"),
        ("seed=99999999999999999999", "team.seed is 99999999999999999999; expected at least 0"),
        ("budget_steps=-4", "team.budget_steps is -4; expected at least 1"),
        ("budget_steps=100", "less than one round of 200 steps"),
        ("processes=0", "processes is 0; expected at least 1"),
        ("video=maybe", "video is 'maybe'; expected true or false"),
        ("mode=collab", "unknown mode 'collab'; did you mean 'collaborative'?"),
        ("env_id=HalfCheeta-v4", "unknown environment 'HalfCheeta-v4'; did you mean 'HalfCheetah-v4'?"),
        ("agents=coordinator,environment,mta", "unknown agent 'mta'; did you mean 'meta'?"),
        ("agents=coordinator,meta", "team.agents lacks 'environment'"),
        ("agents=coordinator,environment,environment", "names an agent twice"),
        ("name=../escape", "name is '../escape'; expected 1 to 64 letters"),
        ("faults.stop=tasks", "team.faults.stop is 'tasks'; expected an empty text or one of proposals"),
        ("rounds.steps=201", "team.rounds.steps is 201; expected a multiple of the 8 environments"),
        ("member.actor_hidden=64", "team.member.actor_hidden has 1 entries; expected 2"),
        ("task.gravity=-1", "team.task.gravity is -1.0; expected at least 0"),
        ("learning", "override 'learning' has no '='"),
    ],
)
def test_wrong_override_is_named_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_preset("smoke").with_overrides([override])
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name = 'x'\n[team.sac]\nlerning_rate = 1",
            "unknown key 'team.sac.lerning_rate'; did you mean 'learning_rate'?",
        ),
        ("name = 'x'\nlearning_rate = 1", "did you mean 'team."),
        ("name = 'x'\nteam = 3", "team is 3 (an integer); expected a table"),
        ("name = 'x'\nprocesses = true", "processes is True (a boolean); expected an integer"),
        ("name = 'x'\n[team.sac]\nlearning_rate = nan", "team.sac.learning_rate is nan; expected a finite number"),
        ("name = 'x'\n[team.sac]\nlearning_rate = '1'", "team.sac.learning_rate is '1' (a text); expected a number"),
        ("description = 'x'", "missing 1 required keyword-only argument: 'name'"),
        ("name = ", "is not valid TOML"),
    ],
)
def test_wrong_scenario_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_scenario(path)
    assert str(caught.value).startswith(f"scenario file {path}")
    assert message in str(caught.value)


def test_missing_scenarios_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown scenario 'halfcheta'; did you mean 'halfcheetah'"):
        load_scenario("halfcheta")
    with pytest.raises(ConfigError, match="does not exist"):
        load_scenario(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_scenario(tmp_path / "folder.toml")


def test_selected_agents_keep_their_fixed_order_and_always_present_ones_are_added() -> None:
    chosen, added = load_preset("smoke").with_agents(["meta", "state"])
    assert chosen.team.agents == ("coordinator", "environment", "state", "meta")
    assert added == ("coordinator", "environment")
    assert load_preset("smoke").with_agents(["environment", "coordinator"])[1] == ()


def test_another_robot_brings_its_sizes_and_target_entropy() -> None:
    smoke = load_preset("smoke").with_overrides(["sac.batch_size=32"])
    humanoid = smoke.with_task("Humanoid-v5")
    preset = preset_for("Humanoid-v5")
    assert preset is not None
    assert humanoid.team.member == preset.team.member
    assert humanoid.team.sac == replace(smoke.team.sac, target_entropy=-2.0)
    assert smoke.with_task("HalfCheetah-v5").team == replace(smoke.team, env_id="HalfCheetah-v5")


def test_every_known_task_is_registered_with_gymnasium() -> None:
    from env_bridge.vector_env import find_spec

    for env_id in KNOWN_TASKS:
        assert find_spec(env_id).id == env_id


@given(st.sampled_from(sorted(RANGES)), st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300]))
def test_no_setting_takes_an_absurd_number(path: str, number: float) -> None:
    with pytest.raises(ConfigError):
        load_preset("smoke").with_overrides([f"{path}={number}"])


@pytest.mark.parametrize(("name", "sizes"), [("halfcheetah", (17, 6)), ("ant", (27, 8)), ("humanoid", (376, 17))])
def test_members_of_the_presets_have_fifty_to_fifty_four_thousand_parameters(name: str, sizes: tuple[int, int]) -> None:
    from agents.member import count_parameters

    assert 50_000 <= count_parameters(load_preset(name).team.member, *sizes) <= 54_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["world.window=64"], r"world\.window is 64, but a stretch for the inner loop has 50 steps"),
        (["sac.discounts=0.9,0.9,0.9,0.9,0.9,0.9"], "6 numbers for 5 members"),
        (["adapt.level=context", "adapt.online=true"], "adapts nothing at a step"),
        (["world.adapted=ridge", "world.meta_order=1", "world.learned_rates=true"], "takes the second order"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_preset("halfcheetah").with_overrides(settings)
