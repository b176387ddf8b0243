from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from swarm.errors import CheckpointError, ConfigError, SwarmError
from swarm.journal import Journal, JournalEntry


def entry(n: int, size: int = 0) -> JournalEntry:
    return JournalEntry(kind="result", task_id=f"t{n}", body={"n": n, "pad": "x" * size, "list": [1, 2.5, None, "ü"]})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


async def fill(path: Path, num_entries: int, size: int = 0) -> None:
    with Journal.open(path) as journal:
        await asyncio.gather(*[journal.append(entry(n, size)) for n in range(num_entries)])


async def test_entries_come_back_in_order_after_reopening(path: Path) -> None:
    await fill(path, 100)
    with Journal.open(path) as journal:
        assert journal.entries() == [entry(n) for n in range(100)]
        await journal.append(entry(100))
        assert journal.entries()[-1] == entry(100)


async def test_incarnation_grows_with_each_life(path: Path) -> None:
    lives = []
    for _ in range(3):
        with Journal.open(path) as journal:
            lives.append(journal.incarnation)
    assert lives == [1, 2, 3]


async def test_second_coordinator_is_refused_in_one_line(path: Path) -> None:
    with Journal.open(path), pytest.raises(ConfigError, match="is in use by another process") as refused:
        Journal.open(path)
    assert "\n" not in str(refused.value)
    Journal.open(path).close()


async def test_lock_holds_between_processes_and_falls_with_kill_9(path: Path) -> None:
    script = (
        "import sys, asyncio; from pathlib import Path; from swarm.journal import Journal, JournalEntry\n"
        "journal = Journal.open(Path(sys.argv[1]))\n"
        "asyncio.run(journal.append(JournalEntry(kind='k', task_id='t', body={'n': 1})))\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(  # noqa: ASYNC220 - one line is read from it, then it is killed
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(ConfigError, match="in use"):
            Journal.open(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Journal.open(path) as journal:
        assert journal.incarnation == 2
        assert journal.entries() == [JournalEntry(kind="k", task_id="t", body={"n": 1})]


async def test_concurrent_appends_share_commits(path: Path) -> None:
    with Journal.open(path) as journal:
        futures = [journal.append_nowait(entry(n)) for n in range(2_000)]
        await asyncio.gather(*map(asyncio.wrap_future, futures))
        assert [e.task_id for e in journal.entries()] == [f"t{n}" for n in range(2_000)]


async def test_cancelled_append_leaves_the_journal_usable(path: Path) -> None:
    with Journal.open(path) as journal:
        task = asyncio.create_task(journal.append(entry(0)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await journal.append(entry(1))
        assert journal.entries()[-1] == entry(1)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("UPDATE entries SET body = replace(body, '5', '6') WHERE id = 6", "damaged at record 6"),
        ("UPDATE entries SET task_id = 'other' WHERE id = 3", "damaged at record 3"),
        ("UPDATE entries SET kind = 'ended' WHERE id = 3", "damaged at record 3"),
        ("UPDATE entries SET checksum = checksum + 1 WHERE id = 9", "damaged at record 9"),
        ("DELETE FROM entries WHERE id = 4", "lacks record 4"),
    ],
)
async def test_damaged_middle_stops_with_the_way_to_recover(path: Path, damage: str, told: str) -> None:
    await fill(path, 10)
    connection = sqlite3.connect(path)
    connection.execute(damage)
    connection.commit()
    connection.close()
    with Journal.open(path) as journal, pytest.raises(CheckpointError, match=f"{told}.*to recover, move it"):
        journal.entries()


@pytest.mark.parametrize("offset", [0, 20, 100, 4096, 4100, 12_000, 30_000])
async def test_overwritten_bytes_of_the_file_never_pass_for_entries(path: Path, offset: int) -> None:
    await fill(path, 200, size=200)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 700)

    def read() -> list[JournalEntry]:
        with Journal.open(path) as journal:
            return journal.entries()

    with pytest.raises(CheckpointError, match="to recover, move it"):
        read()


def test_file_that_is_no_journal_is_refused(path: Path) -> None:
    path.write_bytes(b"GET / HTTP/1.1\r\n" * 100)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Journal.open(path)


def test_journal_of_another_format_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(CheckpointError, match="format 99"):
        Journal.open(path)


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot open .*No such file or directory"):
        Journal.open(tmp_path / "missing" / "journal.sqlite")


async def test_full_disk_stops_the_journal_and_keeps_what_was_promised(path: Path) -> None:
    journal = Journal.open(path)
    await journal.append(entry(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SwarmError, match=r"could not be written .*free space"):
            await journal.append(entry(1, size=1_000_000))
        with pytest.raises(SwarmError, match="could not be written"):
            await journal.append(entry(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.close()
    with Journal.open(path) as reopened:
        assert reopened.entries() == [entry(0)]


async def test_entry_that_is_not_json_is_refused_and_the_next_one_taken(path: Path) -> None:
    with Journal.open(path) as journal:
        with pytest.raises(SwarmError, match="not JSON-like"):
            await journal.append(JournalEntry(kind="k", task_id="t", body={"x": object()}))  # type: ignore[dict-item]
        await journal.append(entry(0))


async def test_closed_journal_takes_nothing(path: Path) -> None:
    journal = Journal.open(path)
    journal.close()
    journal.close()
    with pytest.raises(SwarmError, match="is closed"):
        await journal.append(entry(0))
