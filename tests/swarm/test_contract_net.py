"""Scripts for the manager: events in, instructions out."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import pytest

from swarm.contract_events import (
    Answered,
    CancelAsked,
    Instruction,
    PeerGone,
    PeerUp,
    Publish,
    Record,
    Reported,
    Submitted,
    Ticked,
    WakeAt,
)
from swarm.contract_net import Manager, ManagerConfig, TaskState
from swarm.contract_task import ended_entry, read_ended
from swarm.errors import InvalidTransition
from swarm.journal import JournalEntry
from swarm.messages import (
    Accepted,
    Announcement,
    Award,
    Cancel,
    Done,
    Ended,
    Failed,
    Message,
    Progress,
    Proposal,
    Refusal,
    Rejection,
    Submission,
)

MessageT = TypeVar("MessageT", bound=Message)
SKILLS = frozenset({"work"})
TASK = Submission(task_id="t", kind="work", submitter="me", lease_s=10.0, deadline_s=5.0)


class Net:
    """A manager, what it said, and what it recorded."""

    def __init__(self, *agents: str, capacity: int = 1, manager: Manager | None = None) -> None:
        self.manager = manager or Manager("boss", incarnation=1)
        self.now_s = 100.0
        self.entries: list[JournalEntry] = []
        self.said: list[Message] = []
        for agent in agents:
            self.up(agent, capacity=capacity)

    def take(self, instructions: list[Instruction]) -> list[Message]:
        self.entries += [i.entry for i in instructions if isinstance(i, Record)]
        said = [i.message for i in instructions if isinstance(i, Publish)]
        self.said += said
        return said

    def up(self, agent: str, incarnation: int = 1, capacity: int = 1) -> list[Message]:
        return self.take(self.manager.handle(PeerUp(agent, SKILLS, capacity, incarnation), self.now_s))

    def gone(self, agent: str) -> list[Message]:
        return self.take(self.manager.handle(PeerGone(agent, "killed"), self.now_s))

    def submit(self, task: Submission = TASK) -> int:
        """Returns the epoch of the announcement."""
        return only(self.take(self.manager.handle(Submitted(task), self.now_s)), Announcement).epoch

    def bid(self, agent: str, epoch: int, *values: float, task_id: str = "t", cost: float = 0.0) -> list[Message]:
        proposal = Proposal(task_id=task_id, epoch=epoch, agent=agent, values=values or (1.0,), cost=cost)
        return self.take(self.manager.handle(Answered(proposal), self.now_s))

    def refuse(self, agent: str, epoch: int) -> list[Message]:
        refusal = Refusal(task_id="t", epoch=epoch, agent=agent, reason="no")
        return self.take(self.manager.handle(Answered(refusal), self.now_s))

    def report(self, message: Progress | Done | Failed) -> list[Message]:
        return self.take(self.manager.handle(Reported(message), self.now_s))

    def done(self, agent: str, epoch: int, task_id: str = "t", value: int = 0) -> list[Message]:
        return self.report(Done(task_id=task_id, epoch=epoch, agent=agent, result={"value": value}))

    def tick(self, now_s: float) -> list[Message]:
        self.now_s = now_s
        return self.take(self.manager.handle(Ticked(), now_s))


def of(messages: list[Message], kind: type[MessageT]) -> list[MessageT]:
    return [message for message in messages if isinstance(message, kind)]


def only(messages: list[Message], kind: type[MessageT]) -> MessageT:
    (found,) = of(messages, kind)
    return found


def test_submission_is_recorded_before_it_is_acknowledged_and_announced() -> None:
    instructions = Manager("boss", incarnation=1).handle(Submitted(TASK), 0.0)
    kinds = [type(i.message) if isinstance(i, Publish) else type(i) for i in instructions]
    assert kinds == [Record, Accepted, Announcement, WakeAt]


def test_best_net_value_wins_and_losers_are_rejected() -> None:
    net = Net("a", "b", "c")
    epoch = net.submit()
    assert net.bid("a", epoch, 3.0, cost=2.0) == []
    assert net.refuse("b", epoch) == []
    said = net.bid("c", epoch, 2.0)
    assert only(said, Award).agent == "c"
    assert only(said, Rejection).agent == "a"


def test_ties_go_to_the_first_name() -> None:
    net = Net("a", "b")
    epoch = net.submit()
    net.bid("b", epoch, 1.0)
    assert only(net.bid("a", epoch, 1.0), Award).agent == "a"


def test_done_is_recorded_before_the_end_is_told() -> None:
    net = Net("a")
    epoch = net.submit()
    net.bid("a", epoch)
    done = Done(task_id="t", epoch=epoch, agent="a", result={"value": 7})
    instructions = net.manager.handle(Reported(done), net.now_s)
    assert [i.entry.kind for i in instructions if isinstance(i, Record)] == ["result", "ended"]
    kinds = [type(i) for i in instructions]
    assert kinds.index(Publish) > kinds.index(Record)
    ended = only(net.take(instructions), Ended)
    assert (ended.status, ended.results, ended.units) == ("done", {"a": {"value": 7}}, {"a": 1})


def test_repeated_submission_is_acknowledged_again_and_told_the_same_end() -> None:
    net = Net("a")
    epoch = net.submit()
    assert net.take(net.manager.handle(Submitted(TASK), net.now_s)) == [Accepted(task_id="t")]
    net.bid("a", epoch)
    end = only(net.done("a", epoch), Ended)
    assert net.take(net.manager.handle(Submitted(TASK), net.now_s)) == [Accepted(task_id="t"), end]


def test_other_submission_under_the_same_id_is_counted_and_the_first_wins() -> None:
    net = Net("a")
    net.submit()
    net.manager.handle(Submitted(replace(TASK, units=5)), net.now_s)
    assert net.manager.statistics().conflicts == 1
    assert [entry.body["units"] for entry in net.entries] == [1]


@pytest.mark.parametrize(
    "fault",
    [
        {"units": 0},
        {"lease_s": 0.0},
        {"lease_s": float("nan")},
        {"deadline_s": -1.0},
        {"deadline_s": float("nan")},
        {"eligible": ("a",), "awaited": ("a", "b")},
    ],
)
def test_impossible_submission_fails_at_once_and_is_not_accepted(fault: dict[str, object]) -> None:
    net = Net("a")
    said = net.take(net.manager.handle(Submitted(replace(TASK, **fault)), net.now_s))  # type: ignore[arg-type]
    assert [type(message) for message in said] == [Ended]
    assert only(said, Ended).status == "failed"
    assert net.entries == []


def test_auction_closes_at_its_deadline_with_the_bids_it_has() -> None:
    net = Net("a", "b")
    epoch = net.submit()
    net.bid("a", epoch)
    assert of(net.tick(104.9), Award) == []
    assert only(net.tick(105.0), Award).agent == "a"


def test_late_proposal_is_counted_and_changes_nothing() -> None:
    net = Net("a", "b")
    epoch = net.submit()
    net.bid("a", epoch)
    net.tick(105.0)
    assert net.bid("b", epoch, 99.0) == []
    assert net.manager.statistics().late == 1
    view = net.manager.task("t")
    assert view is not None
    assert view.holders == {"a": (epoch, 1)}


def test_without_bids_it_rests_longer_each_time_and_fails_after_r_auctions() -> None:
    net = Net("a")
    epochs = [net.submit()]
    for rest_s in (0.5, 1.0, 2.0, 4.0):
        net.refuse("a", epochs[-1])
        view = net.manager.task("t")
        assert view is not None
        assert view.state is TaskState.RESTING
        assert net.tick(net.now_s + 0.99 * rest_s) == []
        epochs.append(only(net.tick(net.now_s + 0.01 * rest_s + 1e-9), Announcement).epoch)
    assert only(net.refuse("a", epochs[-1]), Ended).reason == "no bid came on topic 'proposals' in 5 auctions of 'work'"
    assert epochs == sorted(set(epochs))


def test_auction_with_nobody_alive_waits_for_who_comes() -> None:
    net = Net()
    epoch = net.submit()
    assert only(net.up("a"), Announcement).epoch == epoch
    assert only(net.bid("a", epoch), Award).agent == "a"


def test_awaited_agent_is_waited_for_although_it_does_not_live_yet() -> None:
    net = Net("a")
    epoch = net.submit(replace(TASK, awaited=("a", "b"), deadline_s=None))
    assert net.bid("a", epoch, 1.0) == []
    assert {type(message) for message in net.tick(10_000.0)} == {Announcement}
    assert only(net.up("b"), Announcement).epoch == epoch
    assert only(net.bid("b", epoch, 2.0), Award).agent == "b"


def test_awaited_agent_that_dies_after_its_answer_is_waited_for_again() -> None:
    net = Net("a", "b")
    epoch = net.submit(replace(TASK, awaited=("a", "b"), deadline_s=None))
    net.bid("b", epoch, 2.0)
    net.gone("b")
    assert of(net.bid("a", epoch, 1.0), Award) == []
    net.up("b", incarnation=2)
    assert only(net.bid("b", epoch, 2.0), Award).agent == "b"


def test_other_auctions_close_without_an_agent_that_died() -> None:
    net = Net("a", "b")
    epoch = net.submit()
    net.bid("a", epoch)
    assert only(net.gone("b"), Award).agent == "a"


def test_awaited_agent_that_lives_without_the_skill_is_not_waited_for() -> None:
    net = Net("a")
    net.manager.handle(PeerUp("b", frozenset({"other"}), 1, 1), net.now_s)
    epoch = net.submit(replace(TASK, awaited=("a", "b"), deadline_s=None))
    assert only(net.bid("a", epoch), Award).agent == "a"


def test_bid_of_an_ineligible_agent_never_wins() -> None:
    net = Net("a", "b")
    epoch = net.submit(replace(TASK, eligible=("a",)))
    assert net.bid("b", epoch, 99.0) == []
    assert only(net.bid("a", epoch, 1.0), Award).agent == "a"


@pytest.mark.parametrize("values", [(float("nan"),), (float("inf"),), (1.0, 2.0)])
def test_malformed_proposal_counts_as_a_refusal(values: tuple[float, ...]) -> None:
    net = Net("a", "b")
    epoch = net.submit()
    assert only(net.bid("a", epoch, *values), Rejection).agent == "a"
    assert only(net.bid("b", epoch, 0.1), Award).agent == "b"
    assert net.manager.statistics().invalid == 1


def test_lease_is_renewed_by_progress_and_its_end_starts_a_new_auction() -> None:
    net = Net("a")
    epoch = net.submit()
    net.bid("a", epoch)
    net.tick(109.0)
    net.report(Progress(task_id="t", epoch=epoch, agent="a", fraction=0.5))
    assert net.tick(118.9) == []
    said = net.tick(119.0)
    assert only(said, Cancel) == Cancel(
        task_id="t", epoch=epoch, reason="a gave no sign of life within its lease", agent="a"
    )
    assert only(said, Announcement).epoch > epoch


def test_result_under_an_old_epoch_is_fenced() -> None:
    net = Net("a")
    old = net.submit()
    net.bid("a", old)
    new = only(net.tick(110.0), Announcement).epoch
    net.bid("a", new)
    assert net.done("a", old) == []
    assert net.manager.statistics().fenced == 1
    assert only(net.done("a", new), Ended).status == "done"


def test_result_in_the_name_of_another_agent_is_fenced() -> None:
    net = Net("a", "b")
    epoch = net.submit()
    net.bid("a", epoch, 2.0)
    net.bid("b", epoch, 1.0)
    assert net.done("b", epoch) == []
    assert net.manager.statistics().fenced == 1


def test_new_life_of_a_holder_voids_the_award_of_the_old_one() -> None:
    net = Net("a")
    epoch = net.submit()
    net.bid("a", epoch)
    said = net.up("a", incarnation=2)
    assert only(said, Cancel).epoch == epoch
    assert {announcement.epoch for announcement in of(said, Announcement)} == {epoch + 1}
    assert net.done("a", epoch) == []


def test_older_life_of_an_agent_is_ignored() -> None:
    net = Net()
    net.up("a", incarnation=5)
    epoch = net.submit()
    net.bid("a", epoch)
    assert net.up("a", incarnation=4) == []
    assert only(net.done("a", epoch), Ended).status == "done"


def test_task_that_lost_r_holders_fails_with_every_reason() -> None:
    net = Net("a")
    epoch = net.submit()
    for life in range(2, 7):
        net.bid("a", epoch)
        net.gone("a")
        if life < 6:
            epoch = of(net.up("a", incarnation=life), Announcement)[0].epoch
    ended = only(net.said, Ended)
    assert ended.status == "failed"
    assert ended.reason.startswith("5 holders were lost: a is gone: killed; ")


def test_retryable_failure_is_sold_again_and_the_other_kind_ends_the_task() -> None:
    net = Net("a")
    first = net.submit()
    net.bid("a", first)
    said = net.report(Failed(task_id="t", epoch=first, agent="a", reason="bridge lost"))
    second = only(said, Announcement).epoch
    net.bid("a", second)
    said = net.report(Failed(task_id="t", epoch=second, agent="a", reason="no such key", retryable=False))
    assert (only(said, Ended).status, only(said, Ended).reason) == ("failed", "a failed: no such key")


def test_what_the_user_must_change_ends_the_task_and_is_known_after_a_restart() -> None:
    net = Net("a")
    epoch = net.submit()
    net.bid("a", epoch)
    said = net.report(Failed(task_id="t", epoch=epoch, agent="a", reason="no such key", user_error=True))
    ended = only(said, Ended)
    assert (ended.status, ended.user_error) == ("failed", True)
    assert read_ended(ended_entry(ended)) == ended
    other = Net("a")
    epoch = other.submit()
    other.bid("a", epoch)
    said = other.report(Failed(task_id="t", epoch=epoch, agent="a", reason="mine", retryable=False))
    assert only(said, Ended).user_error is False


def test_cancelled_task_tells_everybody() -> None:
    net = Net("a")
    epoch = net.submit()
    net.bid("a", epoch)
    said = net.take(net.manager.handle(CancelAsked("t", "not wanted"), net.now_s))
    assert only(said, Cancel).agent == ""
    assert only(said, Ended).status == "cancelled"
    assert net.done("a", epoch) == []
    assert net.manager.peers()["a"].awards == 0


def test_busy_agent_gets_the_next_task_when_it_is_free() -> None:
    net = Net("a")
    first = net.submit()
    net.bid("a", first)
    second = net.submit(replace(TASK, task_id="u"))
    assert of(net.bid("a", second, task_id="u"), Award) == []
    assert only(net.done("a", first), Award).task_id == "u"


def test_free_bidder_is_preferred_to_a_better_busy_one() -> None:
    net = Net("a", "b")
    first = net.submit()
    net.bid("a", first, 2.0)
    net.bid("b", first, 1.0)
    second = net.submit(replace(TASK, task_id="u"))
    net.bid("a", second, 2.0, task_id="u")
    assert only(net.bid("b", second, 1.0, task_id="u"), Award).agent == "b"


def test_awaited_auction_does_not_depend_on_who_is_busy() -> None:
    net = Net("a", "b")
    first = net.submit()
    net.bid("a", first, 2.0)
    net.bid("b", first, 1.0)
    second = net.submit(replace(TASK, task_id="u", awaited=("a", "b")))
    net.bid("a", second, 2.0, task_id="u")
    assert of(net.bid("b", second, 1.0, task_id="u"), Award) == []
    assert only(net.done("a", first), Award).agent == "a"


def test_busy_winner_that_dies_reopens_an_awaited_auction_until_its_deadline() -> None:
    net = Net("a", "b")
    first = net.submit()
    net.bid("a", first, 2.0)
    net.bid("b", first, 1.0)
    second = net.submit(replace(TASK, task_id="u", awaited=("a", "b")))
    net.bid("a", second, 2.0, task_id="u")
    net.bid("b", second, 1.0, task_id="u")
    assert of(net.gone("a"), Award) == []
    assert [award.agent for award in of(net.tick(105.0), Award) if award.task_id == "u"] == ["b"]


def test_units_go_to_the_best_marginals_and_all_results_are_reported() -> None:
    net = Net("a", "b")
    epoch = net.submit(replace(TASK, units=4))
    net.bid("a", epoch, 5.0, 4.0, 1.0)
    awards = of(net.bid("b", epoch, 3.0, 2.0), Award)
    assert {award.agent: award.units for award in awards} == {"a": 2, "b": 2}
    assert net.done("a", epoch, value=1) == []
    ended = only(net.done("b", epoch, value=2), Ended)
    assert ended.results == {"a": {"value": 1}, "b": {"value": 2}}
    assert ended.units == {"a": 2, "b": 2}


@pytest.mark.parametrize("finished_first", [False, True])
def test_replacement_of_a_lost_holder_wins_exactly_its_units(finished_first: bool) -> None:
    net = Net("a", "b")
    task = replace(TASK, units=4, awaited=("a", "b"), deadline_s=None)
    bids = {"a": (5.0, 4.0, 1.0), "b": (3.0, 2.0, 0.5)}
    first = net.submit(task)
    for agent, values in bids.items():
        net.bid(agent, first, *values)
    if finished_first:
        net.done("b", first)
    announcement = only(net.gone("a"), Announcement)
    assert announcement.units == 4
    net.up("a", incarnation=2)
    net.said.clear()
    for agent, values in bids.items():
        net.bid(agent, announcement.epoch, *values)
    assert [(award.agent, award.units) for award in of(net.said, Award)] == [("a", 2)]
    if not finished_first:
        net.done("b", first)
    assert only(net.done("a", announcement.epoch), Ended).units == {"a": 2, "b": 2}


def test_holder_that_wins_more_gets_one_award_for_all_its_units() -> None:
    net = Net("a", "b")
    first = net.submit(replace(TASK, units=2))
    net.bid("a", first, 2.0, 1.0)
    net.bid("b", first, 3.0, 1.5)
    holders = {award.agent: award.units for award in of(net.said, Award)}
    assert holders == {"a": 1, "b": 1}
    second = only(net.gone("a"), Announcement).epoch
    award = only(net.bid("b", second, 3.0, 1.5), Award)
    assert (award.agent, award.units, award.epoch) == ("b", 2, second)
    assert net.done("b", first) == []
    assert only(net.done("b", second), Ended).units == {"b": 2}


def test_units_that_nobody_wants_stay_unsold() -> None:
    net = Net("a")
    epoch = net.submit(replace(TASK, units=5))
    assert only(net.bid("a", epoch, 2.0, 1.0), Award).units == 2
    assert only(net.done("a", epoch), Ended).units == {"a": 2}
    assert net.manager.statistics().unsold == 3


def test_open_announcement_is_repeated_to_who_has_not_answered() -> None:
    net = Net("a", "b")
    epoch = net.submit()
    net.bid("a", epoch)
    assert only(net.tick(102.0), Announcement).epoch == epoch
    assert only(net.tick(104.0), Announcement).deadline_s == 1.0


@pytest.mark.parametrize(("answer_s", "patient_s"), [(0.5, 0.49), (0.01, 0.24)])
def test_deadline_adapts_to_how_fast_contractors_answer_above_a_floor(answer_s: float, patient_s: float) -> None:
    net = Net("a", "b", capacity=100)
    for n in range(8):
        epoch = net.submit(replace(TASK, task_id=f"t{n}"))
        net.now_s += answer_s
        net.bid("a", epoch, task_id=f"t{n}")
        net.bid("b", epoch, task_id=f"t{n}")
    epoch = net.submit()
    net.bid("a", epoch)
    assert of(net.tick(net.now_s + patient_s), Award) == []
    assert only(net.tick(net.now_s + 0.02), Award).agent == "a"


def test_restarted_manager_cancels_unknown_awards_and_sells_them_again() -> None:
    net = Net("a")
    old = net.submit()
    net.bid("a", old)
    successor = Net(manager=Manager("boss", incarnation=2))
    said = successor.take(successor.manager.restore(net.entries, 0.0))
    assert old < only(said, Cancel).epoch < only(said, Announcement).epoch
    assert only(said, Accepted).task_id == "t"
    successor.up("a")
    assert successor.done("a", old) == []
    successor.bid("a", only(said, Announcement).epoch)
    assert only(successor.done("a", only(said, Announcement).epoch), Ended).status == "done"


def test_restarted_manager_keeps_finished_awards_and_ended_tasks() -> None:
    net = Net("a", "b")
    whole = net.submit(replace(TASK, task_id="whole"))
    net.bid("a", whole, 2.0, task_id="whole")
    net.bid("b", whole, 1.0, task_id="whole")
    end = only(net.done("a", whole, task_id="whole", value=1), Ended)
    half = net.submit(replace(TASK, units=2))
    net.bid("a", half, 2.0)
    net.bid("b", half, 2.0)
    net.done("b", half, value=9)
    successor = Net(manager=Manager("boss", incarnation=2))
    successor.take(successor.manager.restore(net.entries, 0.0))
    again = successor.take(successor.manager.handle(Submitted(replace(TASK, task_id="whole")), 0.0))
    assert only(again, Ended) == end
    epoch = only(of(successor.said, Announcement)[:1], Announcement).epoch  # type: ignore[arg-type]
    successor.up("a")
    successor.bid("a", epoch, 2.0)
    assert only(successor.done("a", epoch, value=1), Ended).results == {"a": {"value": 1}, "b": {"value": 9}}


def test_restart_between_the_last_result_and_the_end_ends_the_task() -> None:
    net = Net("a")
    epoch = net.submit()
    net.bid("a", epoch)
    net.done("a", epoch)
    successor = Manager("boss", incarnation=2)
    instructions = successor.restore(net.entries[:-1], 0.0)
    ends = [i.message for i in instructions if isinstance(i, Publish) and isinstance(i.message, Ended)]
    assert [end.status for end in ends] == ["done"]


def test_restore_after_the_first_event_is_refused() -> None:
    net = Net("a")
    net.submit()
    with pytest.raises(InvalidTransition, match="restore comes before"):
        net.manager.restore([], 0.0)


def test_allocation_is_a_strategy() -> None:
    def last_name(bids: object, units: int) -> dict[str, int]:
        return {"b": units}

    net = Net("a", "b", manager=Manager("boss", incarnation=1, allocate=last_name))
    epoch = net.submit()
    net.bid("a", epoch, 9.0)
    assert only(net.bid("b", epoch, 1.0), Award).agent == "b"


def test_ended_tasks_and_dead_peers_are_forgotten_beyond_their_bounds() -> None:
    net = Net(manager=Manager("boss", incarnation=1, config=ManagerConfig(max_finished=2, max_peers=3)))
    for n in range(5):
        agent, task_id = f"agent-{n}", f"t{n}"
        net.up(agent)
        epoch = net.submit(replace(TASK, task_id=task_id))
        net.bid(agent, epoch, task_id=task_id)
        net.done(agent, epoch, task_id=task_id)
        net.gone(agent)
    assert [net.manager.task(f"t{n}") is not None for n in range(5)] == [False, False, False, True, True]
    assert len(net.manager.peers()) == 3
    assert net.manager.statistics().tasks == {TaskState.DONE: 5}
