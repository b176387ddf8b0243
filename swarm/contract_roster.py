"""Who is there to do the work, as the manager of the contract net sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swarm.contract_events import PeerUp
from swarm.contract_views import PeerView
from swarm.messages import Submission


@dataclass(slots=True)
class _Peer:
    skills: frozenset[str]
    capacity: int
    incarnation: int
    alive: bool = True
    awards: int = 0


class Roster:
    """Agents by name. The dead are remembered to recognise former lives, and forgotten first beyond ``max_peers``."""

    def __init__(self, max_peers: int) -> None:
        self._max_peers = max_peers
        self._peers: dict[str, _Peer] = {}

    def is_older(self, event: PeerUp) -> bool:
        """Whether ``event`` speaks of a life before the one that is known."""
        peer = self._peers.get(event.agent)
        return peer is not None and event.incarnation < peer.incarnation

    def is_newer(self, event: PeerUp) -> bool:
        """Whether ``event`` speaks of a life after one that was thought to go on."""
        peer = self._peers.get(event.agent)
        return peer is not None and peer.alive and event.incarnation > peer.incarnation

    def update(self, event: PeerUp) -> bool:
        """Take over what ``event`` says; false where nothing is new."""
        peer = self._peers.get(event.agent)
        if peer is None or not peer.alive:
            self._peers.pop(event.agent, None)
            self._peers[event.agent] = _Peer(event.skills, event.capacity, event.incarnation)
            self._forget()
            return True
        if (peer.skills, peer.capacity) == (event.skills, event.capacity):
            return False
        peer.skills, peer.capacity = event.skills, event.capacity
        return True

    def bury(self, agent: str) -> bool:
        """Note that ``agent`` is gone; false where it was not thought to live."""
        peer = self._peers.get(agent)
        if peer is None or not peer.alive:
            return False
        peer.alive = False
        return True

    def may_bid(self, agent: str, submission: Submission) -> bool:
        """Whether it lives, has the skill and is eligible."""
        peer = self._peers.get(agent)
        if peer is None or not peer.alive or submission.kind not in peer.skills:
            return False
        return not submission.eligible or agent in submission.eligible

    def awaited(self, submission: Submission) -> set[str]:
        """Agents whose answers an auction waits for: those named, or else all that may bid.

        A named one that lives without the skill cannot answer and is not waited for.
        """
        if not submission.awaited:
            return {name for name in self._peers if self.may_bid(name, submission)}
        unable = {
            name
            for name in submission.awaited
            if (peer := self._peers.get(name)) and peer.alive and submission.kind not in peer.skills
        }
        return set(submission.awaited) - unable

    def has_room(self, agent: str) -> bool:
        """Whether it can take one more award."""
        peer = self._peers[agent]
        return peer.awards < peer.capacity

    def count_awards(self, agent: str, change: int) -> None:
        """Note that it got or gave back awards."""
        self._peers[agent].awards += change

    def view(self) -> Mapping[str, PeerView]:
        """Every agent that is remembered."""
        return {name: PeerView(awards=p.awards, capacity=p.capacity, alive=p.alive) for name, p in self._peers.items()}

    def _forget(self) -> None:
        excess = len(self._peers) - self._max_peers
        if excess > 0:
            for name in [name for name, peer in self._peers.items() if not peer.alive][:excess]:
                del self._peers[name]
