"""The log: what was appended is there for good, whatever happens to the machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfed import payloads
from fullfed.errors import UserError
from fullfed.federation.log import Log, count_records, first_record, read_log
from fullfed.files import lock

RECORDS = [b"first", b"", b"the third \0 record"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "updates.log"


def written(path: Path, records: list[bytes]) -> bytes:
    """The bytes of a log of these records."""
    with Log(path) as log:
        for record in records:
            log.append(record)
    return path.read_bytes()


def contents(path: Path) -> list[bytes]:
    """What a writer and a reader find in a log, which must be the same."""
    by_reader = list(read_log(path))
    with Log(path) as log:
        by_writer = [log.read(index) for index in range(len(log))]
        assert log.sizes == [len(record) for record in by_writer]
    assert by_writer == by_reader
    return by_reader


def test_records_are_read_back_by_the_writer_and_by_a_reader(path: Path) -> None:
    with Log(path) as log:
        for number, record in enumerate(RECORDS):
            assert len(log) == number
            log.append(record)
            assert log.read(number) == record
        assert log.read(0) == RECORDS[0]
        log.append(b"after reading")
    assert contents(path) == [*RECORDS, b"after reading"]


@settings(max_examples=30)
@given(sessions=st.lists(st.lists(st.binary(max_size=40), max_size=3), max_size=4))
def test_a_log_written_in_several_sessions_is_the_log_written_in_one(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[list[bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    for session in sessions:
        written(folder / "several", session)
    at_once = [record for session in sessions for record in session]
    written(folder / "several", [])
    assert (folder / "several").read_bytes() == written(folder / "one", at_once)


def test_a_record_is_on_disk_when_append_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.append(path.read_bytes())

    with Log(path) as log:
        monkeypatch.setattr(os, "fsync", fsync)
        log.append(b"durable")
        assert synced[-1].endswith(b"durable")
        assert synced[-1] == path.read_bytes()


def test_a_tail_torn_at_any_byte_is_cut_off_and_all_earlier_records_survive(path: Path) -> None:
    kept = written(path, RECORDS)
    whole = written(path, [b"torn record"])
    for end in range(len(kept), len(whole)):
        path.write_bytes(whole[:end])
        assert list(read_log(path)) == RECORDS
        assert path.read_bytes() == whole[:end], "a reader changes nothing"
        assert written(path, []) == kept
        assert written(path, [b"torn record"]) == whole


def test_a_creation_interrupted_at_any_byte_is_begun_anew(path: Path) -> None:
    whole = written(path, RECORDS)
    for end in range(len(b"fullfed-log-1\n")):
        for rest in (b"", bytes(len(b"fullfed-log-1\n") - end)):
            path.write_bytes(whole[:end] + rest)
            assert written(path, RECORDS) == whole


def digests(path: Path) -> list[str]:
    """The chain of digests, computed from the payloads alone."""
    found, previous = [], b""
    for payload in read_log(path):
        previous = hashlib.sha256(previous + payload).digest()
        found.append(previous.hex())
    return found


@pytest.mark.parametrize("end", [0, 14, 15, -1, -48, -100])
def test_a_record_that_is_known_is_no_torn_tail(path: Path, end: int) -> None:
    whole = written(path, RECORDS)
    known = digests(path)
    path.write_bytes(whole[:end])
    for open_log in (lambda: Log(path, known), lambda: list(read_log(path, known))):
        with pytest.raises(UserError, match=r"3 records were written|this is not a fullfed log"):
            open_log()
        assert path.read_bytes() == whole[:end]


def test_a_flipped_bit_of_a_known_last_record_is_damage(path: Path) -> None:
    """Without the knowledge it is a torn tail."""
    whole = bytearray(written(path, RECORDS))
    known = digests(path)
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match="3 records were written and 2 are whole"):
        Log(path, known)
    assert written(path, []) == bytes(whole[: -48 - len(RECORDS[-1])])


def test_a_log_is_made_anew_only_where_nothing_is_known(path: Path) -> None:
    with pytest.raises(UserError, match="there is no log here"):
        Log(path, ["00" * 32])
    assert not path.exists()


def test_another_log_is_not_the_known_one(path: Path) -> None:
    written(path, [b"one", b"two"])
    known = digests(path)
    path.unlink()
    written(path, [b"one", b"TWO"])
    with pytest.raises(UserError, match="record 1 is not the one that the run wrote"):
        Log(path, known)


def test_a_chain_that_begins_otherwise_is_another_log(path: Path) -> None:
    with Log(path, begin=b"a run") as log:
        log.append(b"one")
        log.append(b"two")
        assert (
            log.digest == hashlib.sha256(hashlib.sha256(b"a runone").digest() + b"two").hexdigest()
        )
    assert len(Log(path, begin=b"a run")) == 2
    for begin in (b"", b"another"):
        with pytest.raises(UserError, match="damaged at byte 14"):
            Log(path, begin=begin)


def test_records_are_counted_by_their_lengths(path: Path) -> None:
    assert count_records(path) == 0
    whole = written(path, RECORDS)
    assert count_records(path) == 3
    path.write_bytes(whole[:-1])
    assert count_records(path) == 2
    path.write_bytes(whole[:-1] + b"?")
    assert count_records(path) == 3


def test_the_tail_of_zeros_that_a_power_cut_can_leave_is_cut_off(path: Path) -> None:
    kept = written(path, RECORDS)
    for zeros in (1, 39, 48, 49, 4096):
        path.write_bytes(kept + bytes(zeros))
        assert contents(path) == RECORDS
        assert path.read_bytes() == kept


def test_a_last_record_whose_end_never_reached_the_disk_is_cut_off(path: Path) -> None:
    kept = written(path, RECORDS)
    whole = written(path, [b"x" * 100])
    path.write_bytes(whole[:-30] + bytes(30))
    assert contents(path) == RECORDS
    assert path.read_bytes() == kept


def test_one_wrong_byte_before_the_last_record_is_damage(path: Path) -> None:
    earlier = len(written(path, RECORDS))
    whole = written(path, [b"last"])
    for place in range(earlier):
        for flip in (0x01, 0x80):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"updates\.log: .*(damaged at byte|not a fullfed)"):
                list(read_log(path))
            with pytest.raises(UserError, match=r"updates\.log"):
                Log(path)
            assert path.read_bytes() == damaged, "a damaged log is left for its owner to mend"


def test_a_record_taken_out_of_the_middle_is_damage(path: Path, tmp_path: Path) -> None:
    one = len(written(path, RECORDS[:1]))
    two = len(written(path, RECORDS[1:2]))
    whole = written(path, RECORDS[2:])
    path.write_bytes(whole[:one] + whole[two:] + whole[two:])
    with pytest.raises(UserError, match=f"damaged at byte {one}"):
        list(read_log(path))


def test_records_of_another_log_do_not_fit_in(tmp_path: Path) -> None:
    """The chain: a record's digest vouches for all before it."""
    start = len(written(tmp_path / "a", [b"one"]))
    ours = written(tmp_path / "a", [b"two", b"three"])
    theirs = written(tmp_path / "b", [b"ONE", b"two", b"three"])
    (tmp_path / "a").write_bytes(ours[:start] + theirs[start:])
    with pytest.raises(UserError, match=f"damaged at byte {start}"):
        list(read_log(tmp_path / "a"))


def test_the_digests_are_those_the_format_promises(path: Path) -> None:
    whole = written(path, [b"one", b"two"])
    first = hashlib.sha256(b"one").digest()
    second = hashlib.sha256(first + b"two").digest()
    assert whole.index(first) < whole.index(b"one") < whole.index(second) < whole.index(b"two")


def test_a_file_that_is_not_a_log_is_left_alone(path: Path) -> None:
    path.write_text("my own notes, longer than the magic")
    with pytest.raises(UserError, match="not a fullfed log"):
        Log(path)
    with pytest.raises(UserError, match="not a fullfed log"):
        list(read_log(path))
    assert path.read_text() == "my own notes, longer than the magic"


def test_there_is_no_log_to_read_in_an_empty_folder(path: Path) -> None:
    with pytest.raises(UserError, match=r"updates\.log: there is no log here"):
        list(read_log(path))


def test_a_log_that_cannot_be_opened_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.updates\.log: cannot be opened"):
        Log(tmp_path / "missing" / "updates.log")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A disk that is full as long as the list is not empty."""
    full: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return full


def test_a_full_disk_leaves_the_log_as_it_was_and_usable(path: Path, full_disk: list[int]) -> None:
    with Log(path) as log:
        log.append(b"kept")
        before = path.read_bytes()
        full_disk.append(1)
        for record in (b"lost", b"lost" * 100_000):
            with pytest.raises(UserError, match=r"could not be appended \(No space left"):
                log.append(record)
            assert path.read_bytes() == before
            assert (len(log), log.read(0)) == (1, b"kept")
        full_disk.clear()
        log.append(b"later")
        assert log.read(1) == b"later"
    assert contents(path) == [b"kept", b"later"]


LIMITED = """
import os, pathlib, resource, sys
from fullfed import payloads
from fullfed.errors import UserError
from fullfed.federation.log import Log

path, size, room = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with Log(path) as log:
    log.append(b"kept")
    before = path.read_bytes()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
    try:
        log.append(b"x" * size)
    except UserError as error:
        print(error)
    else:
        sys.exit("the disk was not full")
    if sys.argv[4] == "freed":
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log.append(b"s")
    else:
        assert path.read_bytes() == before
"""


@pytest.mark.parametrize("then", ["freed", "ended"])
@pytest.mark.parametrize(("size", "room"), [(10, 0), (1000, 60), (300_000, 0), (300_000, 100_000)])
def test_a_write_the_system_refuses_half_way_leaves_the_log_as_it_was(
    path: Path, size: int, room: int, then: str
) -> None:
    command = [sys.executable, "-c", LIMITED, str(path), str(size), str(room), then]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be appended" in done.stdout
    assert contents(path) == ([b"kept", b"s"] if then == "freed" else [b"kept"])


def test_a_buffer_that_the_freed_space_lets_out_does_not_stay_in_the_log(path: Path) -> None:
    """Cutting the file frees space, so what the disk refused may be written after all."""

    class Refuses:
        """The log's own file, which has room again as soon as it was cut."""

        def __init__(self, log: Log) -> None:
            self.file = log._file

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    with Log(path) as log:
        log.append(b"kept")
        before = path.read_bytes()
        log._file = Refuses(log)  # type: ignore[assignment]
        with pytest.raises(UserError, match="could not be appended"):
            log.append(b"left in the buffer")
        assert path.read_bytes() == before
        log.append(b"s")
    assert contents(path) == [b"kept", b"s"]


def test_two_processes_do_not_write_one_log(path: Path) -> None:
    with Log(path) as log:
        log.append(b"one")
        with pytest.raises(UserError, match="another process"):
            Log(path)
    assert contents(path) == [b"one"]


@pytest.mark.parametrize("before", [0, 1, 2, 3, 4])
def test_records_that_are_left_out_are_gone_and_the_chain_goes_on(path: Path, before: int) -> None:
    whole = written(path, [*RECORDS, b"later"])
    with Log(path) as log:
        digests = [log.digest_after(b"")]
        log.leave_out(before)
        assert (log.first, len(log)) == (before, 4)
        assert log.digest_after(b"") == digests[0]
        log.append(b"the next")
        assert log.size(4) == len(b"the next")
    assert first_record(path) == before
    assert count_records(path) == 5
    assert list(read_log(path)) == [*RECORDS, b"later", b"the next"][before:]
    if before < 4:
        assert whole[-5 - 48 :] in path.read_bytes(), "records are the bytes that they were"
    with Log(path) as log:
        assert [log.read(n) for n in range(before, 5)] == list(read_log(path))
        log.leave_out(before=2)
        assert log.first == max(before, 2)


def test_a_log_without_its_first_records_is_held_to_the_digests_of_all(path: Path) -> None:
    known = []
    with Log(path) as log:
        for record in RECORDS:
            log.append(record)
            known.append(log.digest)
        log.leave_out(2)
    assert list(read_log(path, known)) == RECORDS[2:]
    with Log(path, known) as log:
        assert len(log) == 3
    kept = path.read_bytes()
    for changed in (["0" * 64, *known[1:]], [known[0], "0" * 64, known[2]], [*known, "0" * 64]):
        # The first is of a record that is not here, which the second digest speaks for.
        if changed[1:] == known[1:]:
            assert list(read_log(path, changed)) == RECORDS[2:]
            continue
        for read in (lambda: Log(path, changed), lambda: list(read_log(path, changed))):  # noqa: B023
            with pytest.raises(UserError, match=r"not the one that the run wrote|are whole"):
                read()
    for position in range(len(kept)):
        spoilt = bytearray(kept)
        spoilt[position] ^= 1
        path.write_bytes(spoilt)
        with pytest.raises(UserError):
            list(read_log(path, known))


def test_leaving_out_that_cannot_be_written_leaves_the_log_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(path, RECORDS)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with Log(path) as log:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="free some space"):
            log.leave_out(2)
        monkeypatch.undo()
        assert (log.first, [log.read(n) for n in range(3)]) == (0, RECORDS)
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_after_leaving_out_that_cannot_be_written_records_are_appended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(path, RECORDS)

    def full(source: BinaryIO, target: BinaryIO) -> None:
        source.read(1)
        raise OSError(28, "No space left on device")

    with Log(path) as log:
        monkeypatch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(UserError, match="free some space"):
            log.leave_out(2)
        log.append(b"next")
    assert contents(path) == [*RECORDS, b"next"]


def test_a_log_that_is_replaced_while_it_is_opened_is_another_process_s(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That process has locked the new file, and this one would have the old one's lock."""
    old = written(path, RECORDS)

    def late(file: BinaryIO, otherwise: str) -> None:
        fresh = path.with_suffix(".partial")
        fresh.write_bytes(old)
        fresh.replace(path)
        lock(file, otherwise)

    monkeypatch.setattr("fullfed.federation.log.lock", late)
    with pytest.raises(UserError, match="another process is writing this run"):
        Log(path)


def test_a_log_that_was_closed_is_free_while_a_record_of_it_is_still_looked_at(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payloads, "LARGE", 1)
    with Log(path) as log:
        log.append(b"record")
        record = log.read(0)
    with Log(path) as log:
        assert len(log) == 1
    assert record == b"record"


def test_a_full_disk_leaves_the_log_usable_while_a_record_of_it_is_still_looked_at(
    path: Path, full_disk: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payloads, "LARGE", 1)
    with Log(path) as log:
        log.append(b"record")
        record = log.read(0)
        full_disk.append(1)
        with pytest.raises(UserError, match="could not be appended"):
            log.append(b"another")
        full_disk.clear()
        log.append(b"another")
    assert record == b"record"
