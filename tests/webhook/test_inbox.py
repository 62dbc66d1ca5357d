"""An inbox keeps each accepted delivery once, whoever is killed and when."""

import contextlib
import json
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.curation.readers import read_lines
from potstill.errors import DataError, InboxError
from potstill.inbox import Inbox, count_landed, seal
from potstill.inbox.database import Database
from potstill.inbox.inbox import STRAY_SECONDS


def line(text: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": str(text)}]}).encode()


def sealed_texts(home: Path, recipe: str = "demo") -> list[str]:
    """Every prompt of every segment, read as curation reads it."""
    found = []
    for path in seal(home, recipe):
        for read in read_lines(BytesIO(path.read_bytes())):
            assert read.prompt is not None, read.reason
            found.append(read.prompt.messages[0]["content"])
    return found


def die_in_child(work: Callable[[], object]) -> None:
    """Run `work` in a process that ends as if it were killed: no `finally`, no flush."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def die() -> NoReturn:
    os._exit(9)


def test_what_landed_is_private_and_on_the_disk_under_its_recipe(tmp_path: Path) -> None:
    with Inbox(tmp_path, "demo") as inbox:
        assert inbox.land("m1", "b1", [line(1), line(2)]) == ("landed", 2)
        assert inbox.num_waiting() == 2
    segments = seal(tmp_path, "demo")
    assert [path.relative_to(tmp_path).as_posix() for path in segments] == ["inbox/demo/segments/000001.jsonl"]
    for path in (tmp_path / "inbox", *(tmp_path / "inbox").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_an_id_is_remembered_before_and_after_the_seal_and_by_the_next_process(tmp_path: Path) -> None:
    with Inbox(tmp_path, "demo") as inbox:
        inbox.land("m1", "b1", [line(1)])
        assert inbox.land("m1", "b1", [line(1)]).outcome == "duplicate"
        assert inbox.land("m1", "b2", [line(2)]).outcome == "conflict"
    assert sealed_texts(tmp_path) == ["1"]
    with Inbox(tmp_path, "demo") as inbox:
        assert inbox.land("m1", "b1", [line(1)]).outcome == "duplicate"
        assert inbox.land("m1", "b2", [line(2)]).outcome == "conflict"
        assert inbox.num_waiting() == 0
    assert sealed_texts(tmp_path) == ["1"]
    assert list((tmp_path / "inbox/demo/landed").iterdir()) == []


def test_recipes_do_not_share_ids(tmp_path: Path) -> None:
    for recipe in ("one", "two"):
        with Inbox(tmp_path, recipe) as inbox:
            assert inbox.land("m1", "b1", [line(recipe)]).outcome == "landed"
    assert (sealed_texts(tmp_path, "one"), sealed_texts(tmp_path, "two")) == (["one"], ["two"])


def test_a_delivery_without_a_prompt_leaves_nothing_and_may_be_sent_again(tmp_path: Path) -> None:
    with Inbox(tmp_path, "demo") as inbox:
        assert inbox.land("m1", "b1", []).outcome == "empty"
        assert list((inbox.path / "landed").iterdir()) == []
        assert inbox.land("m1", "b2", [line(1)]).outcome == "landed"


def test_where_nothing_ever_landed_nothing_is_made(tmp_path: Path) -> None:
    assert seal(tmp_path, "demo") == []
    assert count_landed(tmp_path, "demo") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "../demo", "a/b", "", "Demo", "demo\n", ".hidden", "a" * 64, "\0", "a\ud800"])
def test_a_name_that_could_leave_the_inbox_is_refused(tmp_path: Path, name: str) -> None:
    for use in (lambda: Inbox(tmp_path, name), lambda: seal(tmp_path, name), lambda: count_landed(tmp_path, name)):
        with pytest.raises(DataError, match="no recipe's name"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_lines_that_end_in_an_error_leave_nothing(tmp_path: Path) -> None:
    def broken():
        yield line(1)
        raise DataError("too long")

    with Inbox(tmp_path, "demo") as inbox:
        with pytest.raises(DataError, match="too long"):
            inbox.land("m1", "b1", broken())
        assert list((inbox.path / "landed").iterdir()) == []
        assert inbox.land("m1", "b1", [line(1)]).outcome == "landed"


class TestOneIdAtOnce:
    def test_of_many_at_once_with_one_body_one_lands(self, tmp_path: Path) -> None:
        barrier = threading.Barrier(8)

        def lines():
            barrier.wait(10)  # all have found that the id is new
            yield line(1)

        with Inbox(tmp_path, "demo") as inbox, ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(lambda _: inbox.land("m1", "b1", lines()).outcome, range(8)))
            assert sorted(outcomes) == ["duplicate"] * 7 + ["landed"]
            assert len(list((inbox.path / "landed").iterdir())) == 1
        assert sealed_texts(tmp_path) == ["1"]

    def test_of_many_at_once_with_bodies_of_their_own_one_lands(self, tmp_path: Path) -> None:
        barrier = threading.Barrier(4)

        def land(number: int) -> str:
            def lines():
                barrier.wait(10)
                yield line(number)

            return inbox.land("m1", f"b{number}", lines()).outcome

        with Inbox(tmp_path, "demo") as inbox, ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(land, range(4)))
        assert sorted(outcomes) == ["conflict"] * 3 + ["landed"]
        assert sealed_texts(tmp_path) == [str(outcomes.index("landed"))]

    def test_two_that_make_the_inbox_at_once_share_it(self, tmp_path: Path) -> None:
        (tmp_path / "inbox").mkdir()
        barrier = threading.Barrier(4)

        def land(number: int) -> str:
            barrier.wait(10)
            with Inbox(tmp_path, "demo") as inbox:
                return inbox.land(f"m{number}", "b", [line(number)]).outcome

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(land, range(4))) == {"landed"}
        assert sorted(sealed_texts(tmp_path)) == ["0", "1", "2", "3"]


class TestKilledWhileItLands:
    def test_before_the_commit_nothing_counts_and_the_same_lands_again(self, tmp_path: Path, monkeypatch) -> None:
        def in_the_lines():
            yield line(1)
            die()

        with Inbox(tmp_path, "demo"):
            pass
        die_in_child(lambda: Inbox(tmp_path, "demo").land("m1", "b1", in_the_lines()))

        def before_the_commit() -> None:
            inbox = Inbox(tmp_path, "demo")
            inbox.database.transaction = die  # type: ignore[method-assign]
            inbox.land("m1", "b1", [line(1)])

        die_in_child(before_the_commit)
        assert len(list((tmp_path / "inbox/demo/landed").iterdir())) == 2
        assert count_landed(tmp_path, "demo") == 0
        assert sealed_texts(tmp_path) == []
        with Inbox(tmp_path, "demo") as inbox:
            assert inbox.land("m1", "b1", [line(1)]).outcome == "landed"
        assert sealed_texts(tmp_path) == ["1"]

    def test_after_the_commit_it_counts_and_the_same_is_a_duplicate(self, tmp_path: Path) -> None:
        def land() -> None:
            Inbox(tmp_path, "demo").land("m1", "b1", [line(1)])
            die()

        die_in_child(land)
        assert count_landed(tmp_path, "demo") == 1
        with Inbox(tmp_path, "demo") as inbox:
            assert inbox.land("m1", "b1", [line(1)]).outcome == "duplicate"
        assert sealed_texts(tmp_path) == ["1"]

    def test_what_a_crash_left_is_deleted_once_it_is_old(self, tmp_path: Path) -> None:
        with Inbox(tmp_path, "demo") as inbox:
            inbox.land("m1", "b1", [line(1)])
            stray = inbox.path / "landed" / "stray.jsonl"
            stray.write_bytes(line("nobody's"))
        assert sealed_texts(tmp_path) == ["1"]
        assert stray.exists(), "it may be a delivery that lands just now"
        long_ago = time.time() - STRAY_SECONDS - 1
        os.utime(stray, (long_ago, long_ago))
        assert sealed_texts(tmp_path) == ["1"]
        assert not stray.exists()


def steps_of_a_seal(home: Path) -> list[str]:
    steps: list[str] = []
    with Inbox(home, "demo") as inbox:
        for number in range(2):
            inbox.land(f"steps {number}", "b", [line(number)])
        inbox.seal(steps.append)
    return steps


STEPS = ("complete", "claim", "write", "rename", "unlink", "unlink the others", "note", "sweep")


class TestSealing:
    def test_a_seal_has_these_steps(self, tmp_path: Path) -> None:
        assert steps_of_a_seal(tmp_path) == list(STEPS)

    @pytest.mark.parametrize("step", STEPS)
    def test_killed_before_any_step_the_next_call_completes_it(self, tmp_path: Path, step: str) -> None:
        with Inbox(tmp_path, "demo") as inbox:
            for number in range(3):
                inbox.land(f"m{number}", "b", [line(number)])

        def seal_until(name: str) -> None:
            Inbox(tmp_path, "demo").seal(lambda reached: die() if reached == name else None)

        die_in_child(lambda: seal_until(step))
        with Inbox(tmp_path, "demo") as inbox:
            inbox.land("m3", "b", [line(3)])
            assert inbox.land("m0", "b", [line(0)]).outcome == "duplicate"
        die_in_child(lambda: seal_until("sweep"))
        first = sealed_texts(tmp_path)
        assert first == ["0", "1", "2", "3"]
        assert count_landed(tmp_path, "demo") == 0
        assert sealed_texts(tmp_path) == first
        assert list((tmp_path / "inbox/demo/landed").iterdir()) == []
        assert list((tmp_path / "inbox/demo/segments").glob("*.tmp")) == []

    def test_until_a_segment_is_whole_its_prompts_are_counted_as_landed(self, tmp_path: Path) -> None:
        with Inbox(tmp_path, "demo") as inbox:
            inbox.land("m1", "b", [line(1)])
        die_in_child(lambda: Inbox(tmp_path, "demo").seal(lambda reached: die() if reached == "write" else None))
        assert count_landed(tmp_path, "demo") == 1

    def test_segments_never_change_and_come_oldest_first(self, tmp_path: Path) -> None:
        before: dict[Path, bytes] = {}
        for number in range(12):
            with Inbox(tmp_path, "demo") as inbox:
                inbox.land(f"m{number}", "b", [line(number)])
            segments = seal(tmp_path, "demo")
            assert {path: path.read_bytes() for path in segments[:-1]} == before
            before = {path: path.read_bytes() for path in segments}
        assert sealed_texts(tmp_path) == [str(number) for number in range(12)]
        assert len(seal(tmp_path, "demo")) == 12, "nothing has landed: no new segment"

    def test_two_sealers_take_turns_while_deliveries_land(self, tmp_path: Path) -> None:
        def land() -> None:
            with Inbox(tmp_path, "demo") as inbox:
                for number in range(60):
                    inbox.land(f"m{number}", "b", [line(number)])

        def seal_often() -> None:
            for _ in range(8):
                seal(tmp_path, "demo")

        with Inbox(tmp_path, "demo"), ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(land), pool.submit(seal_often), pool.submit(seal_often)]:
                done.result()
        assert sealed_texts(tmp_path) == [str(number) for number in range(60)]

    def test_a_file_that_somebody_deleted_stops_no_seal(self, tmp_path: Path, caplog) -> None:
        with Inbox(tmp_path, "demo") as inbox:
            inbox.land("m0", "b", [line(0)])
            [lost] = (inbox.path / "landed").iterdir()
            inbox.land("m1", "b", [line(1)])
        lost.unlink()
        assert sealed_texts(tmp_path) == ["1"]
        assert "the prompts of 1 deliveries are gone" in caplog.text


class TestTrouble:
    def test_an_index_of_a_later_version_is_refused(self, tmp_path: Path) -> None:
        with Inbox(tmp_path, "demo") as inbox:
            path = inbox.database.path
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 9")
        connection.close()
        with pytest.raises(InboxError, match="of version 9, which this Potstill does not know"):
            seal(tmp_path, "demo")

    def test_an_index_that_is_none_is_named(self, tmp_path: Path) -> None:
        with Inbox(tmp_path, "demo") as inbox:
            path = inbox.database.path
        path.write_bytes(b"rubbish" * 1000)
        with pytest.raises(InboxError, match=r"index\.db cannot be used \(file is not a database\)"):
            count_landed(tmp_path, "demo")

    def test_a_failed_transaction_takes_nothing_with_it(self, tmp_path: Path) -> None:
        database = Database(tmp_path)

        def work() -> None:
            with database.transaction() as connection:
                connection.execute("UPDATE announced SET seq = 5")
                connection.execute("no SQL")

        with pytest.raises(InboxError, match="syntax error"):
            work()
        with database.reading() as connection:
            assert connection.execute("SELECT seq FROM announced").fetchall() == [(0,)]
        database.close()

    def test_no_room_is_said_and_the_delivery_may_come_again(self, tmp_path: Path) -> None:
        def full():
            yield line(1)
            raise OSError(28, "No space left on device")

        with Inbox(tmp_path, "demo") as inbox:
            with pytest.raises(InboxError, match="No space left on device"):
                inbox.land("m1", "b1", full())
            assert inbox.land("m1", "b1", [line(1)]).outcome == "landed"


IDS = st.integers(0, 5)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("land"), IDS, st.integers(0, 1)),
        st.tuples(st.just("seal"), st.sampled_from((*STEPS, "")), st.just(0)),
    ),
    max_size=14,
)


class StoppedError(Exception):
    pass


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES)
def test_any_order_of_deliveries_and_seals_that_end_anywhere_keeps_each_once(tmp_path_factory, moves) -> None:
    home = tmp_path_factory.mktemp("inbox")
    accepted: dict[int, int] = {}
    for kind, what, body in moves:
        with Inbox(home, "demo") as inbox:
            if kind == "land":
                outcome = inbox.land(str(what), str(body), [line(f"{what}/{body}")]).outcome
                expected = "duplicate" if accepted.get(what) == body else "conflict"
                assert outcome == (expected if what in accepted else "landed")
                accepted.setdefault(what, body)
            else:

                def stop(step: str, at: str = what) -> None:
                    if step == at:
                        raise StoppedError

                with contextlib.suppress(StoppedError):
                    inbox.seal(stop)
    assert sealed_texts(home) == [f"{identity}/{body}" for identity, body in accepted.items()]
