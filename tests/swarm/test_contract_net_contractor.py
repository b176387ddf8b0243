"""Scripts for the contractor: events in, instructions out."""

from __future__ import annotations

import pytest

from swarm.contract_events import Abandon, Heard, Perform, Performed, Propose, Proposed, Publish, Ticked, WakeAt
from swarm.contractor import Contractor, ContractorConfig
from swarm.errors import InvalidTransition
from swarm.messages import Announcement, Award, Cancel, Done, Progress, Proposal, Rejection


def contractor(capacity: int = 2, remembered: int = 4096) -> Contractor:
    config = ContractorConfig(remembered=remembered)
    return Contractor("a", incarnation=1, skills=frozenset({"work"}), capacity=capacity, config=config)


def announcement(
    epoch: int = 1, task_id: str = "t", kind: str = "work", eligible: tuple[str, ...] = ()
) -> Announcement:
    return Announcement(task_id=task_id, epoch=epoch, kind=kind, eligible=eligible)


def award(epoch: int = 1, task_id: str = "t", agent: str = "a") -> Award:
    return Award(task_id=task_id, epoch=epoch, agent=agent, kind="work", units=1, terms={}, lease_s=30.0)


def proposal(epoch: int = 1, task_id: str = "t") -> Proposal:
    return Proposal(task_id=task_id, epoch=epoch, agent="a", values=(1.0,))


def done(epoch: int = 1, task_id: str = "t") -> Done:
    return Done(task_id=task_id, epoch=epoch, agent="a", result={"value": 1})


def test_repeated_announcement_gets_the_first_answer_again() -> None:
    machine = contractor()
    assert machine.handle(Heard(announcement()), 0.0) == [Propose(announcement())]
    assert machine.handle(Heard(announcement()), 0.0) == []
    assert machine.handle(Proposed(proposal()), 0.0) == [Publish(proposal())]
    assert machine.handle(Heard(announcement()), 0.0) == [Publish(proposal())]


def test_announcements_for_others_and_of_other_work_are_ignored() -> None:
    machine = contractor()
    assert machine.handle(Heard(announcement(eligible=("b",))), 0.0) == []
    assert machine.handle(Heard(announcement(kind="else")), 0.0) == []


def test_older_announcement_is_not_answered_after_a_newer_one() -> None:
    machine = contractor()
    machine.handle(Heard(announcement(5)), 0.0)
    assert machine.handle(Heard(announcement(4)), 0.0) == []
    machine.handle(Proposed(proposal(5)), 0.0)
    assert machine.handle(Heard(announcement(4)), 0.0) == []


def test_answer_to_a_cancelled_announcement_is_not_published() -> None:
    machine = contractor()
    machine.handle(Heard(announcement()), 0.0)
    machine.handle(Heard(Cancel(task_id="t", epoch=1, reason="")), 0.0)
    assert machine.handle(Proposed(proposal()), 0.0) == []


def test_award_is_performed_once_and_its_outcome_said_again() -> None:
    machine = contractor()
    assert machine.handle(Heard(award()), 0.0) == [Perform(award()), WakeAt(1.0)]
    assert machine.handle(Heard(award()), 0.0) == []
    assert machine.handle(Performed(done()), 0.5) == [Publish(done())]
    assert machine.handle(Heard(award()), 0.6) == [Publish(done())]
    assert machine.statistics().duplicates == 2


def test_award_of_another_agent_is_ignored() -> None:
    assert contractor().handle(Heard(award(agent="b")), 0.0) == []


def test_progress_is_told_each_second_while_performing() -> None:
    machine = contractor()
    machine.handle(Heard(award()), 0.0)
    assert machine.handle(Ticked(), 0.5) == [WakeAt(1.0)]
    sign = Progress(task_id="t", epoch=1, agent="a", fraction=0.0)
    assert machine.handle(Ticked(), 1.0) == [Publish(sign), WakeAt(2.0)]
    machine.handle(Performed(done()), 1.5)
    assert machine.handle(Ticked(), 2.0) == []


@pytest.mark.parametrize("agent", ["", "a"])
def test_cancelled_work_is_abandoned_and_its_result_not_published(agent: str) -> None:
    machine = contractor()
    machine.handle(Heard(award()), 0.0)
    assert machine.handle(Heard(Cancel(task_id="t", epoch=1, reason="", agent=agent)), 0.1) == [Abandon("t", 1)]
    assert machine.handle(Performed(done()), 0.2) == []


def test_cancellation_of_another_holder_changes_nothing() -> None:
    machine = contractor()
    machine.handle(Heard(award()), 0.0)
    assert machine.handle(Heard(Cancel(task_id="t", epoch=1, reason="", agent="b")), 0.1) == []
    assert machine.handle(Performed(done()), 0.2) == [Publish(done())]


def test_cancellation_that_overtakes_its_award_still_counts() -> None:
    machine = contractor()
    machine.handle(Heard(Cancel(task_id="t", epoch=3, reason="")), 0.0)
    assert machine.handle(Heard(award(3)), 0.1) == []
    assert machine.handle(Heard(award(4)), 0.2)[0] == Perform(award(4))


def test_award_under_a_higher_epoch_replaces_the_older_one_but_not_the_reverse() -> None:
    machine = contractor()
    machine.handle(Heard(award(1)), 0.0)
    assert machine.handle(Heard(award(2)), 0.1)[:2] == [Abandon("t", 1), Perform(award(2))]
    assert machine.handle(Heard(award(1)), 0.2) == []
    assert machine.handle(Performed(done(1)), 0.3) == []
    assert machine.handle(Performed(done(2)), 0.4) == [Publish(done(2))]


def test_awards_beyond_the_capacity_wait_their_turn_and_show_signs_of_life() -> None:
    machine = contractor(capacity=1)
    machine.handle(Heard(award()), 0.0)
    assert machine.handle(Heard(award(2, "u")), 0.0) == [WakeAt(1.0)]
    signs = [i.message for i in machine.handle(Ticked(), 1.0) if isinstance(i, Publish)]
    assert len(signs) == 2
    assert machine.handle(Performed(done()), 1.5)[:2] == [Publish(done()), Perform(award(2, "u"))]


def test_rejection_needs_no_action() -> None:
    assert contractor().handle(Heard(Rejection(task_id="t", epoch=1, agent="a")), 0.0) == []


def test_memory_is_bounded_and_eviction_does_not_admit_an_award_again() -> None:
    machine = contractor(remembered=3)
    machine.handle(Heard(award(1, "live")), 0.0)
    for epoch in range(2, 20):
        task_id = f"t{epoch}"
        machine.handle(Heard(announcement(epoch, task_id)), 0.0)
        machine.handle(Proposed(proposal(epoch, task_id)), 0.0)
        machine.handle(Heard(award(epoch, task_id)), 0.0)
        machine.handle(Performed(done(epoch, task_id)), 0.0)
        assert machine.remembered() <= 3
    assert machine.handle(Heard(award(2, "t2")), 0.0) == []
    assert machine.handle(Heard(award(1, "live")), 0.0) == []
    assert machine.handle(Performed(done(1, "live")), 0.0) == [Publish(done(1, "live"))]


def test_outcome_of_another_agent_is_refused() -> None:
    with pytest.raises(InvalidTransition, match="'a' was given a message of 'b'"):
        contractor().handle(Performed(Done(task_id="t", epoch=1, agent="b")), 0.0)


def test_contractor_without_capacity_is_refused() -> None:
    with pytest.raises(InvalidTransition, match="capacity=0"):
        contractor(capacity=0)
