"""Who is alive, from hellos, heartbeats, goodbyes and the supervisor's word. Pure; feeds the contract net's manager."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swarm.contract_events import PeerGone, PeerUp
from swarm.messages import Goodbye, Heartbeat, Hello, Message, PeerDown

HEARTBEAT_S: Final = 1.0
MISSED_BEATS: Final = 3
MAX_PEERS: Final = 10_000


@dataclass(slots=True)
class _Peer:
    incarnation: int
    heard_s: float
    alive: bool


class PresenceTracker:
    """Turns presence messages and silence into `PeerUp` and `PeerGone`.

    Who said goodbye or was reported down stays gone until a higher incarnation speaks; who was only silent (a hung
    loop, SIGSTOP) is back as soon as it is heard again.
    """

    def __init__(self, now_s: float) -> None:
        self._peers: dict[str, _Peer] = {}
        self._buried: dict[str, int] = {}
        self._checked_s = now_s

    def incarnation_of(self, agent: str) -> int | None:
        """Return the newest known life of ``agent``."""
        peer = self._peers.get(agent)
        return None if peer is None else peer.incarnation

    def hear(self, message: Message, now_s: float) -> list[PeerUp | PeerGone]:
        """Take note of a presence message; messages of an earlier life change nothing."""
        match message:
            case Hello(agent=agent, incarnation=incarnation) | Heartbeat(agent=agent, incarnation=incarnation):
                return self._alive(agent, incarnation, message, now_s)
            case Goodbye(agent=agent, incarnation=incarnation):
                peer = self._peers.get(agent)
                if peer is None or peer.incarnation > incarnation:
                    return []
                return self._bury(agent, "it said goodbye")
            case PeerDown(agent=agent, reason=reason):
                return self._bury(agent, reason)
        return []

    def check(self, now_s: float) -> list[PeerGone]:
        """Return who has missed `MISSED_BEATS` beats; to be called once a beat, after what waited was heard.

        A check that itself comes late says that *this* loop hung: that time counts against nobody.
        """
        late_s = max(0.0, now_s - self._checked_s - HEARTBEAT_S)
        self._checked_s = now_s
        gone = []
        for agent, peer in self._peers.items():
            peer.heard_s += late_s
            if peer.alive and now_s - peer.heard_s > MISSED_BEATS * HEARTBEAT_S:
                peer.alive = False
                gone.append(PeerGone(agent, f"silent for {MISSED_BEATS} heartbeats"))
        return gone

    def _alive(self, agent: str, incarnation: int, message: Hello | Heartbeat, now_s: float) -> list[PeerUp | PeerGone]:
        if incarnation <= self._buried.get(agent, -1):
            return []
        peer = self._peers.get(agent)
        if peer is not None and incarnation < peer.incarnation:
            return []
        if peer is None and len(self._peers) >= MAX_PEERS and not self._forget_one():
            return []
        self._peers[agent] = _Peer(incarnation, now_s, alive=True)
        return [PeerUp(agent, frozenset(message.skills), message.capacity, incarnation)]

    def _bury(self, agent: str, reason: str) -> list[PeerUp | PeerGone]:
        peer = self._peers.get(agent)
        if peer is None or self._buried.get(agent, -1) >= peer.incarnation:
            return []
        self._buried[agent] = peer.incarnation
        peer.alive = False
        return [PeerGone(agent, reason)]

    def _forget_one(self) -> bool:
        """Make room by forgetting the dead peer that was silent longest; a live one is never forgotten."""
        dead = [agent for agent, peer in self._peers.items() if not peer.alive]
        if not dead:
            return False
        oldest = min(dead, key=lambda agent: self._peers[agent].heard_s)
        del self._peers[oldest]
        self._buried.pop(oldest, None)
        return True
