"""A stepping worker, ``python -m env_bridge.worker``: one of a `crew`, or with rows of its own; or it rolls out.

It is started with one end of a socket pair and the descriptor of the shared memory; it ends when the other end closes.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from env_bridge.crew import MODEL
from env_bridge.dynamics import Models
from env_bridge.infos import Told, encode_told
from env_bridge.lanes import LaneOptions, LocalLanes
from env_bridge.models import route_warnings_to_log
from env_bridge.neighbours import Neighbours, Share
from env_bridge.physics import RobotSimulation
from env_bridge.rollout import check_request, run_packed
from env_bridge.service import Kept, error_kind
from env_bridge.shared_arrays import ArraySpec, SharedArrays
from env_bridge.stepping import Board, Stepper
from env_bridge.tasks import task_from_json
from env_bridge.vector_env import VectorEnv, find_robot
from env_bridge.wire import Letter, encode, letter_to_request, read, read_maps, read_optional_map, result_to_letter
from env_bridge.worker_wire import (
    DONE,
    EXIT_PATIENCE_S,
    LETTER,
    READY,
    STEP,
    receive_byte,
    receive_letter,
    send_byte,
    send_frames,
)
from swarm.errors import CodecError, ConfigError, PeerLost, SwarmError
from swarm.messages import Json

TOLD: Final = "told"
LOOK_FOR_OWNER_S: Final = 1


class Rows:
    """Environments of their own class in one worker, and their rows of the shared arrays."""

    def __init__(self, memory: int, body: Mapping[str, Json]) -> None:
        first, count = read(body, "first", int), read(body, "count", int)
        shared = SharedArrays(memory, [ArraySpec.from_json(spec) for spec in read(body, "specs", list)], create=False)
        self._arrays = {name: array[first : first + count] for name, array in shared.arrays.items()}
        given = LaneOptions(
            env_id=read(body, "env_id", str),
            num_envs=count,
            mode=AutoresetMode(read(body, "mode", str)),
            options=read(body, "options", dict),
            max_episode_steps=body["max_episode_steps"],  # type: ignore[arg-type]  # written by `worker_lanes`
        )
        self._lanes = LocalLanes(given, given.make())

    def step(self) -> Told:
        """Step with the shared actions and write what it gave."""
        arrays = self._arrays
        self._lanes.send(arrays["action"])
        batch = self._lanes.wait()
        np.copyto(arrays["observation"], batch.observation)
        np.copyto(arrays["reward"], batch.reward)
        np.copyto(arrays["terminated"], batch.terminated)
        np.copyto(arrays["truncated"], batch.truncated)
        np.copyto(arrays["diverged"], batch.diverged)
        if batch.final_observation is not None:
            arrays["final_observation"][batch.ended] = batch.final_observation[batch.ended]
        return batch.told

    def perform(self, letter: Letter) -> Letter:
        """Do what a letter asks. Raises ``ConfigError`` where it does not fit."""
        body: dict[str, Json] = {}
        arrays: Mapping[str, NDArray[Any]] = {}
        match letter.kind:
            case "reset":
                seeds = read(letter.body, "seeds", list)
                started = self._lanes.reset(
                    seeds, np.array(letter.arrays["mask"], np.bool_), read_optional_map(letter.body, "options")
                )
                if read(letter.body, "pending", bool):
                    self._lanes.expect_reset()
                np.copyto(self._arrays["observation"], started.observation)
                body = {TOLD: encode_told(started.told)}
            case "get_state":
                arrays = self._lanes.get_state()
            case "set_state":
                self._lanes.set_state(letter.arrays)
            case "set_tasks":
                self._lanes.set_tasks([task_from_json(task) for task in read_maps(letter.body, "tasks")])
            case _:
                raise ConfigError(f"unknown request {letter.kind!r} to a stepping worker")
        return Letter(kind="ok", request_id=letter.request_id, body=body, arrays=arrays)


class Hand:
    """This process's part in a `crew.ProcessCrew`."""

    def __init__(self, memory: int, body: Mapping[str, Json]) -> None:
        shared = SharedArrays(memory, [ArraySpec.from_json(spec) for spec in read(body, "specs", list)], create=False)
        robot = find_robot(read(body, "env_id", str), read(body, "options", dict))
        assert robot is not None, "a crew is of robots"
        model = mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": shared.arrays[MODEL].tobytes()})
        self._models = Models(model, read(body, "num_envs", int))
        self.set_tasks(body)
        data, addresses = mujoco.MjData(model), self._models.addresses
        unshared = {name: np.zeros_like(array) for name, array in shared.arrays.items()}
        ours, theirs = socket.socketpair()
        theirs.close()
        with ours:  # nothing is asked there: this loads what is compiled
            Stepper(robot, addresses, data, Board(unshared)).serve(ours.fileno(), STEP, DONE)
        self._stepper = Stepper(robot, addresses, data, Board(shared.arrays))

    def set_tasks(self, body: Mapping[str, Json]) -> None:
        """Take the tasks of all simulations, or none where nothing was said yet."""
        tasks = [task_from_json(task) for task in read_maps(body, "tasks")]
        if tasks:
            self._models.assign(tasks)

    def step(self) -> bytes:
        """Step what nobody took; return what to say then."""
        self._stepper.step()
        return DONE

    def serve(self, descriptor: int) -> bytes:
        """`step` as often as asked to; return the first byte that asks for something else, if one could be read."""
        return self._stepper.serve(descriptor, STEP, DONE)


class Shares:
    """This process's part in a `rollout_pool.RolloutPool`."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._kept = Kept()

    def perform(self, letter: Letter) -> Letter:
        """Roll out one share. Raises ``ConfigError`` or ``ActionError`` as `rollout.run_rollout`."""
        request = letter_to_request(letter)
        check_request(request)
        share = Share.from_json(read(letter.body, "share", dict))
        env = self._kept.get((request.env_id, share.place, share.sizes), lambda: self._make(request.env_id, share))
        simulation = env.simulation
        if isinstance(simulation, RobotSimulation) and isinstance(simulation.crew, Neighbours):
            with simulation.crew.rollout(share):
                result = run_packed(request, env, share=share)
        else:
            result = run_packed(request, env, share=share)
        return result_to_letter(result, letter.request_id)

    def _make(self, env_id: str, share: Share) -> VectorEnv:
        robot = find_robot(env_id, {})
        crew = None if robot is None else Neighbours(self._memory, share, robot)
        return VectorEnv(env_id, share.sizes[share.place], crew=crew)


def serve(connection: socket.socket, memory: int) -> NoReturn:
    """Answer until the other end closes, which raises ``PeerLost``."""
    shares = Shares(memory)
    rows: Rows | None = None
    hand: Hand | None = None

    def perform(letter: Letter) -> Letter:
        nonlocal rows, hand
        if letter.kind == "make":
            rows = Rows(memory, letter.body)
            return Letter(kind="ok", request_id=letter.request_id)
        if letter.kind == "join":
            hand = Hand(memory, letter.body)
            return Letter(kind="ok", request_id=letter.request_id)
        if letter.kind == "set_tasks" and hand is not None:
            hand.set_tasks(letter.body)
            return Letter(kind="ok", request_id=letter.request_id)
        if letter.kind == "rollout":
            return shares.perform(letter)
        if rows is None:
            raise ConfigError(f"request {letter.kind!r} came before 'make'")
        return rows.perform(letter)

    send_byte(connection, READY)
    while True:
        byte = b"" if hand is None else hand.serve(connection.fileno())
        byte = byte or receive_byte(connection)
        if byte == STEP and hand is not None:
            send_byte(connection, hand.step())
        elif byte == STEP and rows is not None:
            answer = _answered(0, rows.step)
            if answer is None:
                send_byte(connection, DONE)
            else:
                _send_answer(connection, answer)
        elif byte == LETTER:
            try:
                letter = receive_letter(connection)
            except CodecError as error:
                _send_answer(connection, Letter(kind="config-error", request_id=0, body={"text": str(error)}))
            else:
                _send_answer(connection, guarded(letter, perform))


def _send_answer(connection: socket.socket, answer: Letter) -> None:
    """Send an answer, or why it cannot be written."""
    try:
        frames = encode(answer)
    except (CodecError, TypeError, ValueError, OverflowError) as error:
        text = f"what the environments told cannot leave their process ({error}): use workers=0"
        frames = encode(Letter(kind="config-error", request_id=answer.request_id, body={"text": text}))
    send_frames(connection, frames)


def _answered(request_id: int, step: Callable[[], Told]) -> Letter | None:
    """Step; a letter where there is more to say than that it is done."""

    def perform(letter: Letter) -> Letter:
        told = step()
        body: dict[str, Json] = {TOLD: encode_told(told)} if told else {}
        return Letter(kind="ok", request_id=letter.request_id, body=body)

    letter = guarded(Letter(kind="step", request_id=request_id), perform)
    return None if letter.kind == "ok" and not letter.body else letter


def guarded(letter: Letter, perform: Callable[[Letter], Letter]) -> Letter:
    """The answer to ``letter``; every error becomes a letter, so that the worker lives on."""
    try:
        return perform(letter)
    except SwarmError as error:
        return Letter(kind=error_kind(error), request_id=letter.request_id, body={"text": str(error)})
    except Exception as error:  # of an environment's class or a policy: told to the owner, with its trace
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        return Letter(kind="error", request_id=letter.request_id, body={"text": text})


def _outlive_briefly(descriptor: int) -> None:
    """Wait until the owner's end of the socket is closed; then end the process, even in the middle of its work.

    Where the owner forked, its child holds that end, too: an owner that has died is noticed by itself.
    """
    hangup, owner = select.poll(), os.getppid()
    hangup.register(descriptor, 0)  # a closed end is always reported
    while not hangup.poll(1000 * LOOK_FOR_OWNER_S) and os.getppid() == owner:
        pass
    time.sleep(EXIT_PATIENCE_S)  # a worker that is idle ends by itself, and in order
    os._exit(1)


def main() -> int:
    """Run the worker; the owner's end is its end."""
    parser = argparse.ArgumentParser(prog="python -m env_bridge.worker", description="A stepping worker (internal).")
    parser.add_argument("--control", type=int, required=True, help="descriptor of a socket to the owner")
    parser.add_argument("--memory", type=int, required=True, help="descriptor of the shared memory")
    parser.add_argument("--cpu", type=int, help="the processor to stay on (default: any)")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner decides
    route_warnings_to_log()
    with socket.socket(fileno=options.control) as connection:
        threading.Thread(target=_outlive_briefly, args=(options.control,), name="lifeline", daemon=True).start()
        try:
            serve(connection, options.memory)
        except PeerLost:
            return 0


if __name__ == "__main__":
    raise SystemExit(main())
