"""The command ``swarm``: its arguments and exit codes. What a command does is in `scenarios.commands`.

Nothing heavy is imported here, so that ``swarm --help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

EXIT_FAILED: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130
ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
EXIT_CODES: Final = (
    "exit codes: 0 ok, 1 the run failed, 2 bad input, 130 interrupted (the last committed round is kept)"
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; `argparse` would print the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(EXIT_BAD_INPUT, f"swarm: error: {message}; see: {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's) and return the exit code."""
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else EXIT_BAD_INPUT
    for name in ONE_THREAD:  # before torch is imported: small networks, and the same bits as the nodes
        os.environ[name] = "1"
    from scenarios import commands
    from swarm.errors import ConfigError, SwarmError

    try:
        return commands.COMMANDS[arguments.command](arguments)
    except ConfigError as error:
        print(f"swarm: error: {_one_line(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except SwarmError as error:
        print(f"swarm: error: {_one_line(error)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as in `swarm list | head -1`
        sys.stderr.close()
        return EXIT_FAILED
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"swarm: error: cannot read or write{where}: {error.strerror or error}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, PermissionError) else EXIT_FAILED


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="swarm",
        description="Train, adapt and judge a team of cooperating reinforcement-learning agents on MuJoCo.",
        epilog=f"example: swarm run halfcheetah\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    _add_run(commands)
    _add_run_directory_commands(commands)
    listing = _command(commands, "list", "List the scenarios that come with the package, and tasks.", "swarm list")
    _add_json(listing)
    doctor = _command(
        commands, "doctor", "Check this machine: versions, cores, threads, rendering, ports, disk.", "swarm doctor"
    )
    _add_json(doctor)
    _add_bench(commands)
    return parser


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    bench = _command(
        commands,
        "bench",
        "Measure this project beside its peers and the machine's limit, in one run; quote the ratios.",
        "swarm bench update --json",
    )
    bench.add_argument("name", metavar="NAME", help="bridge, ssm, update, … (a wrong name lists all)")
    bench.add_argument(
        "--threads", metavar="N", type=_positive, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)"
    )
    _add_json(bench)


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    example = (
        "swarm run halfcheetah --steps 20000 --seed 1\n"
        "         swarm run smoke --set sac.learning_rate=1e-3 --set rounds.lot=50 --out trial"
    )
    run = _command(commands, "run", "Train a team as a scenario says, evaluate it and write a report.", example)
    run.add_argument("scenario", metavar="SCENARIO", help="name of a preset (see: swarm list) or path of a .toml file")
    run.add_argument("--task", metavar="ID", help="Gymnasium id to train on, such as Ant-v4")
    run.add_argument(
        "--agents",
        metavar="NAMES",
        help="specialists that take part, with commas, such as meta,adaptation,state; "
        "the coordinator and the environment agent always do",
    )
    run.add_argument("--steps", metavar="N", help="budget of environment steps, all members together")
    run.add_argument("--seed", metavar="N", help="seed of every random stream of the run")
    run.add_argument("--processes", metavar="N", help="worker processes that host the agents")
    run.add_argument("--mode", metavar="M", help="how members work together: collaborative or independent")
    run.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change any setting of the scenario; may be repeated",
    )
    run.add_argument("--out", metavar="DIR", type=Path, help="run directory (default: runs/NAME-SEED-DATE-TIME)")
    _add_output(run)


def _add_run_directory_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    resume = _command(
        commands, "resume", "Continue a run from its last committed round.", "swarm resume runs/halfcheetah-0"
    )
    _add_directory(resume)
    resume.add_argument(
        "--allow-import",
        action="store_true",
        help="import the classes of agents of your own that the run directory names; only for directories you trust",
    )
    _add_output(resume)
    evaluate = _command(
        commands,
        "evaluate",
        "Run deterministic episodes of the trained policy and write the report anew.",
        "swarm evaluate runs/halfcheetah-0 --episodes 20",
    )
    _add_directory(evaluate)
    evaluate.add_argument("--episodes", metavar="N", type=_positive, default=10, help="how many (default: 10)")
    _add_adapted(evaluate)
    _add_json(evaluate)
    adapt = _command(
        commands,
        "adapt",
        "Adapt the trained policy to changed dynamics at test time; accepted only if it re-evaluates better.",
        "swarm adapt runs/halfcheetah-0 --shift gravity=1.5,friction=0.7 --save heavy\n"
        "         swarm adapt runs/halfcheetah-0 --suite shift-test --tasks 6 --level climb --episodes 5",
    )
    _add_directory(adapt)
    _add_adapt_options(adapt)
    _add_export(commands)
    _add_video(commands)


def _add_adapt_options(adapt: _Parser) -> None:
    what = adapt.add_mutually_exclusive_group()
    what.add_argument(
        "--shift",
        metavar="KEY=VALUE,…",
        help="factors on gravity, mass, friction, damping, actuator_gain; crippled=INDEX; observation_delay=STEPS; "
        "sensor_noise=DEVIATION; velocity=M/S; direction=RAD; goal_x=M,goal_y=M",
    )
    what.add_argument(
        "--suite",
        metavar="NAME",
        help="adapt to each of some test tasks of a suite, such as shift-test (default: the run's)",
    )
    adapt.add_argument("--tasks", metavar="N", type=_positive, help="how many tasks of the suite (default: 6)")
    adapt.add_argument(
        "--level",
        choices=("context", "inner", "probe", "climb"),
        help="how far: context (memory lasts over episodes), inner (and the world model adapts), probe (and the best "
        "of members and adapted world model is chosen), climb (and an evolution strategy); default: the scenario's",
    )
    adapt.add_argument("--episodes", metavar="K", type=_positive, help="episodes before the re-evaluation, of 8 robots")
    adapt.add_argument(
        "--online",
        action=argparse.BooleanOptionalAction,
        help="the world model adapts at every step of an episode, or not; default: the scenario's",
    )
    adapt.add_argument("--seed", metavar="N", type=_round_number, default=0, help="names the episodes (default: 0)")
    adapt.add_argument("--save", metavar="NAME", help="save what was accepted, for: swarm evaluate DIR --adapted NAME")
    _add_json(adapt)


def _add_adapted(parser: _Parser) -> None:
    parser.add_argument("--adapted", metavar="NAME", help="the policy that swarm adapt --save NAME wrote, on its task")


def _add_export(commands: argparse._SubParsersAction[_Parser]) -> None:
    export = _command(
        commands,
        "export",
        "Write a trained policy as one file and a card, for use without the swarm (docs/export.md).",
        "swarm export runs/halfcheetah-0 --out policy.safetensors",
    )
    _add_directory(export)
    export.add_argument("--member", metavar="NAME", help="whose policy (default: the one that the run reported)")
    export.add_argument("--round", metavar="N", type=_round_number, help="a kept round (default: the newest)")
    export.add_argument("--out", metavar="PATH", type=Path, help="file to write (default: DIR/policy.FORMAT)")
    export.add_argument(
        "--format", metavar="F", help="safetensors, pt2 (torch.export) or onnx (default: as PATH ends, or safetensors)"
    )
    _add_json(export)


def _add_video(commands: argparse._SubParsersAction[_Parser]) -> None:
    video = _command(
        commands,
        "video",
        "Film a trained policy: MP4, GIF, contact sheet, two policies side by side (docs/pictures.md).",
        "swarm video runs/halfcheetah-0\n"
        "         swarm video runs/halfcheetah-0 --shift gravity=1.5 --beside policy.safetensors --out film.gif",
    )
    video.add_argument(
        "source",
        metavar="POLICY",
        type=Path,
        help="a run directory, a checkpoint in one, a file that swarm export wrote, or an adapted policy's file",
    )
    video.add_argument("--round", metavar="N", type=_round_number, help="a kept round of the run (default: the newest)")
    video.add_argument("--member", metavar="NAME", help="whose policy (default: the one that the run reported)")
    _add_adapted(video)
    video.add_argument("--beside", metavar="POLICY", type=Path, help="a second one, in the same states and task")
    video.add_argument(
        "--shift", metavar="KEY=VALUE,…", help="changed dynamics and goals, as in gravity=1.5,crippled=2 or velocity=2"
    )
    video.add_argument("--seed", metavar="N", type=_round_number, help="names the initial states")
    video.add_argument("--seconds", metavar="S", type=float, default=10.0, help="length at most (default: 10)")
    video.add_argument("--size", metavar="WxH", default="480x360", help="pixels of each picture (default: 480x360)")
    video.add_argument("--format", choices=("mp4", "gif", "both"), help="kind of film (default: as PATH ends, or mp4)")
    video.add_argument(
        "--sheet", metavar="CxR", nargs="?", const="4x3", help="also a PNG of moments in C columns and R rows"
    )
    video.add_argument("--out", metavar="PATH", type=Path, help="file to write: .mp4, .gif or .png (default: see docs)")
    _add_json(video)


def _command(commands: argparse._SubParsersAction[_Parser], name: str, purpose: str, example: str) -> _Parser:
    return commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=f"example: {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="DIR", type=Path, help="a run directory")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plain", action="store_true", help="plain lines instead of the live view")
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output, all else on error")


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return number


def _round_number(text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
