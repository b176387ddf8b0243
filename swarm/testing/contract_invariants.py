"""What must hold in a contract net after every event, checked against a log that mirrors what was said.

The log sees what manager and contractors were told and what they really executed, and keeps its own account of who
holds what, so that a defect of the machines does not hide itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from swarm.contract_net import Manager, TaskState, TaskView
from swarm.contract_task import ACCEPTED, ENDED, RESULT, read_ended
from swarm.contractor import Contractor
from swarm.journal import JournalEntry
from swarm.messages import Accepted, Announcement, Award, Cancel, Ended, Failed, Message, Proposal


@dataclass(slots=True)
class ContractLog:
    """An independent account of one contract net over all lives of its manager.

    Attributes:
        entries: the journal.
        breaches: what went wrong, as sentences.
        now_s: time of the latest event.
        slack_s: longest time for which the simulation keeps a timer from its machine.
    """

    entries: list[JournalEntry] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    now_s: float = 0.0
    slack_s: float = 0.0
    held: dict[str, dict[str, int]] = field(default_factory=dict)  # task -> holder -> epoch
    ended: dict[str, Ended] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    _announced: dict[str, int] = field(default_factory=dict)
    _highest_epoch: int = -1
    _bids: set[tuple[str, int, str]] = field(default_factory=set)
    _awarded: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    _multiple: set[str] = field(default_factory=set)
    _results: set[tuple[str, int, str]] = field(default_factory=set)
    _performed: set[tuple[str, int, str, int]] = field(default_factory=set)

    def manager_heard(self, message: Message) -> None:
        """Note a message before the manager handles it."""
        if isinstance(message, Proposal) and self._announced.get(message.task_id) == message.epoch:
            self._bids.add((message.task_id, message.epoch, message.agent))
        if isinstance(message, Failed):
            self._release(message.task_id, message.epoch, message.agent)

    def manager_restarted(self) -> None:
        """All that the former life had awarded is void."""
        self.held.clear()

    def performs(self, agent: str, incarnation: int, award: Award) -> None:
        """Note the start of work (invariant 10: a duplicate is not performed again in the same life)."""
        key = (agent, incarnation, award.task_id, award.epoch)
        self._expect(key not in self._performed, f"{agent} performs {award.task_id} under {award.epoch} twice")
        self._performed.add(key)

    def recorded(self, entry: JournalEntry) -> None:
        """Note a durable entry (invariants 3 and 4)."""
        self.entries.append(entry)
        task_id, body = entry.task_id, entry.body
        if entry.kind == ACCEPTED:
            self._expect(task_id not in self.accepted, f"{task_id} is accepted twice")
            self.accepted.add(task_id)
            if body["units"] != 1:
                self._multiple.add(task_id)
        elif entry.kind == RESULT:
            agent, epoch = str(body["agent"]), body["epoch"]
            assert isinstance(epoch, int)
            current = self.held.get(task_id, {}).get(agent)
            self._expect(current == epoch, f"{task_id}: result of {agent} under {epoch} counts, but it holds {current}")
            self._expect((task_id, epoch, agent) not in self._results, f"{task_id}: a result of {agent} counts twice")
            self._results.add((task_id, epoch, agent))
            self._release(task_id, epoch, agent)
        elif entry.kind == ENDED:
            self._expect(task_id in self.accepted, f"{task_id} ends but was not accepted")
            self._expect(task_id not in self.ended, f"{task_id} ends twice")
            self.ended[task_id] = read_ended(entry)

    def published(self, message: Message) -> None:
        """Note what the manager really published (invariants 2, 3, 5, 9)."""
        if isinstance(message, Accepted):
            self._expect(message.task_id in self.accepted, f"{message.task_id} is acknowledged before it is journalled")
        elif isinstance(message, Ended):
            known = self.ended.get(message.task_id)
            self._expect(known == message, f"{message.task_id} is told to have ended as {message}, journalled: {known}")
        elif isinstance(message, Announcement):
            repeated = self._announced.get(message.task_id) == message.epoch
            self._expect(
                repeated or message.epoch > self._highest_epoch, f"{message.task_id}: old epoch {message.epoch}"
            )
            self._announced[message.task_id] = message.epoch
            self._highest_epoch = max(self._highest_epoch, message.epoch)
        elif isinstance(message, Cancel):
            for agent, epoch in list(self.held.get(message.task_id, {}).items()):
                if epoch <= message.epoch and message.agent in ("", agent):
                    self._release(message.task_id, epoch, agent)
        elif isinstance(message, Award):
            self._award(message)

    def _award(self, award: Award) -> None:
        task_id, epoch, agent = award.task_id, award.epoch, award.agent
        holders = self.held.setdefault(task_id, {})
        self._expect((task_id, epoch, agent) in self._bids, f"{task_id}: {agent} wins under {epoch} without a bid")
        winners = self._awarded.setdefault((task_id, epoch), set())
        self._expect(agent not in winners, f"{task_id} is awarded to {agent} under {epoch} twice")
        winners.add(agent)
        if task_id not in self._multiple:
            self._expect(not holders and len(winners) == 1, f"{task_id} is awarded to {agent}, held by {holders}")
        self._expect(task_id not in self.ended, f"{task_id} is awarded after its end")
        holders[agent] = epoch

    def _release(self, task_id: str, epoch: int, agent: str) -> None:
        if self.held.get(task_id, {}).get(agent) == epoch:
            del self.held[task_id][agent]

    def _expect(self, condition: bool, breach: str) -> None:
        if not condition:
            self.breaches.append(f"at {self.now_s:.3f} s: {breach}")


def check_invariants(manager: Manager, contractors: Iterable[Contractor], log: ContractLog) -> None:
    """Raise ``AssertionError`` naming every broken invariant; for after each event, once its instructions are done."""
    views = {task_id: view for task_id in manager.unfinished() if (view := manager.task(task_id))}
    broken = [*log.breaches, *_of_tasks(manager, views, log), *_of_counts(manager, views)]
    for contractor in contractors:
        num_performing = len(contractor.performing())
        if num_performing > contractor.capacity:
            broken.append(f"{contractor.agent} performs {num_performing} at once, capacity {contractor.capacity}")
    if broken:
        raise AssertionError("\n".join(broken))


def check_quiet(manager: Manager, contractors: Iterable[Contractor], log: ContractLog) -> None:
    """Raise ``AssertionError`` unless, after quiet, manager, contractors and journal agree on every task."""
    broken = [f"{task_id} never ends: {manager.task(task_id)}" for task_id in manager.unfinished()]
    broken += [f"{task_id} is lost" for task_id in sorted(log.accepted - log.ended.keys())]
    for contractor in contractors:
        if working := contractor.performing():
            broken.append(f"{contractor.agent} still performs {dict(working)}")
    restored = Manager(manager.name, incarnation=1 << 30)
    if instructions := restored.restore(log.entries, log.now_s):
        broken.append(f"the journal asks for {instructions}")
    broken += [f"{t}: journal and manager disagree" for t in log.ended if restored.ended(t) != manager.ended(t)]
    if broken:
        raise AssertionError("\n".join(broken))


def _of_tasks(manager: Manager, views: Mapping[str, TaskView], log: ContractLog) -> list[str]:
    """Invariants 1, 2, 6, 7: states, holders, deadlines, attempts."""
    broken = []
    if views.keys() != log.accepted - log.ended.keys():
        broken.append(f"unfinished {sorted(views)}, journalled {sorted(log.accepted - log.ended.keys())}")
    for task_id, view in views.items():
        holders = {agent: epoch for agent, (epoch, _) in view.holders.items()}
        if holders != log.held.get(task_id, {}):
            broken.append(f"{task_id}: the manager knows the holders {holders}, told were {log.held.get(task_id)}")
        if len(view.losses) >= manager.config.max_holders:
            broken.append(f"{task_id} goes on after {len(view.losses)} lost holders")
        overdue = view.closes_s is not None and view.closes_s + log.slack_s < log.now_s
        if overdue and not view.waits_for_capacity:
            broken.append(f"{task_id}: auction open beyond its deadline {view.closes_s}")
        if view.state is TaskState.WORKING and not view.holders:
            broken.append(f"{task_id} has neither holder nor auction")
    return broken


def _of_counts(manager: Manager, views: Mapping[str, TaskView]) -> list[str]:
    """Invariants 8, 11, 15: capacity, conservation, bounded memory."""
    broken = []
    s = manager.statistics()
    if s.proposals != s.accepted + s.rejected + s.late + s.pending:
        broken.append(f"proposals are not conserved: {s}")
    held = Counter(agent for view in views.values() for agent in view.holders)
    for agent, peer in manager.peers().items():
        if peer.awards != held[agent] or peer.awards > peer.capacity or (peer.awards and not peer.alive):
            broken.append(f"{agent} holds {held[agent]}: {peer}")
    return broken
