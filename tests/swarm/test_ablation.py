from __future__ import annotations

import numpy as np
import pytest

from swarm.ablation import Ablation, Faults
from swarm.errors import ConfigError
from swarm.messages import Evaluation, Gradient, Hello, ParameterVersion, Proposal, Refusal
from swarm.topics import Topic


def gradient(version: int, value: float, owner: str = "meta") -> Gradient:
    arrays = {"prediction": np.full((1, 3), value, np.float32)}
    return Gradient(owner=owner, version=version, kind="member", num_samples=8, arrays=arrays)


def proposal(task_id: str, value: float) -> Proposal:
    return Proposal(task_id=task_id, epoch=1, agent="meta", values=(value,))


def replacing(*topics: Topic) -> Ablation:
    return Ablation(Faults(replace=frozenset(topics)))


def test_without_faults_every_message_travels_as_it_is() -> None:
    message = gradient(1, 1.0)
    assert Ablation().apply(message) is message


def test_a_stopped_topic_carries_nothing_and_is_counted() -> None:
    ablation = Ablation(Faults(stop=frozenset({Topic.GRADIENTS})))
    assert ablation.apply(gradient(1, 1.0)) is None
    assert ablation.stopped == {Topic.GRADIENTS: 1}
    assert ablation.apply(proposal("r1.act", 2.0)) is not None


def test_a_replaced_gradient_keeps_its_envelope_and_carries_the_round_before() -> None:
    ablation = replacing(Topic.GRADIENTS)
    assert ablation.apply(gradient(1, 1.0)) is not None
    assert ablation.apply(gradient(1, 10.0, owner="state")) is not None
    replaced = ablation.apply(gradient(2, 2.0))
    assert isinstance(replaced, Gradient)
    assert replaced.version == 2
    assert replaced.arrays["prediction"].tolist() == [[1.0, 1.0, 1.0]]
    assert ablation.replaced == {Topic.GRADIENTS: 1}


def test_the_replacement_is_the_original_of_the_round_before_not_its_replacement() -> None:
    ablation = replacing(Topic.GRADIENTS)
    sent = [ablation.apply(gradient(version, float(version))) for version in (1, 2, 3)]
    assert [float(message.arrays["prediction"][0, 0]) for message in sent if isinstance(message, Gradient)] == [1, 1, 2]


def test_a_round_that_is_published_again_is_replaced_the_same_way() -> None:
    ablation = replacing(Topic.PROPOSALS)
    ablation.apply(proposal("r1.900.0.act", 1.0))
    first = ablation.apply(proposal("r2.900.0.act", 2.0))
    again = ablation.apply(proposal("r2.900.1.act", 2.0))
    assert isinstance(first, Proposal)
    assert isinstance(again, Proposal)
    assert (first.values, again.values) == ((1.0,), (1.0,))
    assert again.task_id == "r2.900.1.act"


def test_proposals_for_different_work_are_different_streams() -> None:
    ablation = replacing(Topic.PROPOSALS)
    ablation.apply(proposal("r1.act", 1.0))
    other = ablation.apply(proposal("r2.compute", 7.0))
    assert isinstance(other, Proposal)
    assert other.values == (7.0,)


def test_evaluations_and_parameters_are_replaced_by_judge_and_owner() -> None:
    ablation = replacing(Topic.EVALUATIONS, Topic.PARAMETERS)
    for round_index in (1, 2):
        vote = ablation.apply(
            Evaluation(judge="state", round_index=round_index, kind="vote", scores={"meta": float(round_index)})
        )
        weights = ablation.apply(
            ParameterVersion(owner="state", version=round_index, digest="0" * 64, arrays={"w": np.ones(round_index)})
        )
    assert isinstance(vote, Evaluation)
    assert (vote.round_index, vote.scores) == (2, {"meta": 1.0})
    assert isinstance(weights, ParameterVersion)
    assert weights.arrays["w"].shape == (1,)


def test_refusals_and_presence_pass_a_replaced_topic() -> None:
    ablation = replacing(Topic.PROPOSALS)
    refusal = Refusal(task_id="r1.act", epoch=1, agent="meta", reason="busy")
    assert ablation.apply(refusal) is refusal
    hello = Hello(agent="meta", incarnation=1)
    assert ablation.apply(hello) is hello


def test_faults_survive_their_json_form() -> None:
    faults = Faults(replace=frozenset({Topic.PROPOSALS}), stop=frozenset({Topic.GRADIENTS, Topic.EXPERIENCE}))
    assert Faults.from_json(faults.to_json()) == faults


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"replace": ["tasks"]}, "expected one of"),
        ({"stop": ["presence"]}, "expected one of"),
        ({"replace": "gradients"}, "expected a list"),
        ({"replace": [3]}, "expected one of"),
        ({"drop": []}, "unknown key 'drop'"),
    ],
)
def test_faults_that_make_no_sense_are_refused_in_one_line(data: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Faults.from_json(data)  # type: ignore[arg-type]
