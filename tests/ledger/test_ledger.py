import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, time
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from potstill.errors import UsageError
from potstill.ledger import AttemptPlan, Caps, Ledger, Settlement, Status
from potstill.ledger.database import KEYS_A_QUERY, Database
from potstill.ledger.entries import NO_CAPS, Admission
from potstill.ledger.spend import Spend, add_up
from potstill.llm.messages import Reply
from potstill.llm.pricing import Rates, Tier
from potstill.owner import this_process
from potstill.records import Usage

ROOT = Path(__file__).parents[2]
RATES = Rates(Decimal("2.5"), Decimal("1.25"), Decimal(10), "given")
REPLY = Reply({"role": "assistant", "content": "yes"}, "yes", "stop", Usage(input=3, output=1))


@pytest.fixture
def url(ledger_url: str) -> str:
    return ledger_url


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger(url)


def plan(key: str, bound: str = "0.01", run: str = "run") -> AttemptPlan:
    return AttemptPlan(key, f"prompt-{key}", run, "teach", "openai", "m", Decimal(bound), RATES)


def settle(ledger: Ledger, attempt: int, of: AttemptPlan, status: Status, usage: Usage | None = None) -> Decimal:
    reply = REPLY._replace(usage=usage or Usage()) if status == "answered" else None
    error = None if status == "answered" else f"was {status}"
    settlement = Settlement(attempt, of, status, reply, usage, http_status=200, error=error, seconds=0.1)
    ledger.settle(settlement)
    return settlement.cost_usd


def begun(ledger: Ledger, of: AttemptPlan, cap: str | None = None) -> int:
    admission = ledger.begin(of, caps(cap))
    assert admission.attempt_id is not None
    return admission.attempt_id


def caps(run_usd: str | None) -> Caps:
    return Caps(None if run_usd is None else Decimal(run_usd))


def driver(url: str) -> str:
    """The address as SQLAlchemy wants it, which takes "postgresql" alone for an older driver's."""
    return url.replace("postgresql://", "postgresql+psycopg://")


def rows(url: str) -> list[tuple[str, str, int | None]]:
    """Key, status and cost in pico-dollars of every attempt, read without the ledger."""
    with create_engine(driver(url)).connect() as connection:
        found = connection.execute(text("SELECT answer_key, status, cost_usd FROM attempts ORDER BY id"))
        return [(row[0], row[1], row[2]) for row in found]


def test_every_attempt_is_a_row_whatever_came_of_it(ledger: Ledger, url: str) -> None:
    usage = Usage(input=100, cached_input=40, output=7)
    attempts: list[tuple[Status, Usage | None]] = [
        ("failed", None),
        ("unknown", None),
        ("unusable", usage),
        ("answered", usage),
    ]
    for status, billed in attempts:
        settle(ledger, begun(ledger, plan("k")), plan("k"), status, billed)
    begun(ledger, plan("later"))

    cost = 60 * 2_500_000 + 40 * 1_250_000 + 7 * 10_000_000
    assert rows(url) == [
        ("k", "failed", 0),
        ("k", "unknown", None),
        ("k", "unusable", cost),
        ("k", "answered", cost),
        ("later", "in_flight", None),
    ]
    found = ledger.costs(["k"])["k"]
    assert (found.attempts, found.billed, found.unknown) == (4, 2, 1)
    assert (found.input_tokens, found.cached_input_tokens, found.output_tokens) == (200, 80, 14)
    assert found.cost_usd == Decimal("0.00054")
    assert found.unknown_usd == Decimal("0.01")


def test_a_thousand_small_costs_add_up_exactly(ledger: Ledger) -> None:
    """0.1 and 0.3 micro-dollars have no exact binary form."""
    rates = Rates(Decimal("0.1"), Decimal("0.1"), Decimal("0.3"), "given")
    plans = [plan(f"k{number}", "0.0001")._replace(rates=rates) for number in range(300)]
    begun = ledger.write([], [(of, NO_CAPS) for of in plans])
    usage = Usage(input=1, output=1)
    ledger.write(
        [Settlement(it.attempt_id or 0, of, "answered", REPLY, usage) for it, of in zip(begun, plans, strict=True)], []
    )
    costs = ledger.costs(f"k{number}" for number in range(300))
    assert sum(cost.cost_usd for cost in costs.values()) == Decimal("0.00012")
    assert ledger.account("run").committed_usd == Decimal("0.00012")


def test_an_answer_is_found_by_its_key_in_any_later_ledger_of_the_same_database(ledger: Ledger, url: str) -> None:
    settle(ledger, begun(ledger, plan("k")), plan("k"), "answered", Usage(input=3, output=1))
    again = Ledger(url)
    assert again.id == ledger.id
    assert again.find_answers(["k", "other"])["k"].reply == REPLY
    assert again.look_up(["k", "other"]).missing == {"other"}


def test_what_somebody_asks_right_now_is_not_asked_by_another(ledger: Ledger, url: str) -> None:
    other = Ledger(url)
    first = begun(ledger, plan("k"))
    assert other.begin(plan("k")) == Admission(None, "claimed")
    settle(ledger, first, plan("k"), "failed")
    second = begun(other, plan("k"))
    assert ledger.begin(plan("k")) == Admission(None, "claimed")
    settle(other, second, plan("k"), "answered", Usage(input=3, output=1))
    assert ledger.begin(plan("k")) == Admission(None, "answered")
    assert len(rows(url)) == 2


def test_one_group_asks_for_a_key_once(ledger: Ledger) -> None:
    admissions = ledger.write([], [(plan("k"), NO_CAPS), (plan("k"), NO_CAPS), (plan("other"), NO_CAPS)])
    assert [admission.why_not for admission in admissions] == [None, "claimed", None]


def test_what_was_refused_for_good_is_not_asked_again(ledger: Ledger) -> None:
    settle(ledger, begun(ledger, plan("k")), plan("k"), "refused")
    assert ledger.begin(plan("k")) == Admission(None, "refused")


def test_a_batched_request_has_the_rates_of_the_time_at_which_it_was_begun_tiers_included(
    ledger: Ledger, url: str
) -> None:
    dear = Tier(Decimal(5), Decimal("2.5"), Decimal(5), Decimal(15), Decimal(0), 200_001, time(16, 30, tzinfo=UTC))
    tiered = plan("k")._replace(rates=RATES._replace(cache_write=Decimal("2.5"), tiers=(dear,)))
    ledger.begin_batch("token", "openai", "http://127.0.0.1:9/v1", "run", [(tiered, NO_CAPS), (plan("flat"), NO_CAPS)])
    first, second = Ledger(url).in_batch("token")
    assert first.plan == tiered
    assert second.plan.rates == RATES._replace(cache_write=Decimal("2.5"))


def test_a_refusal_holds_where_the_clock_was_set_back_after_the_attempt_before_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[tuple[float, Status]] = [(1000.0, "failed"), (998.0, "refused")]
    for seconds, status in attempts:
        monkeypatch.setattr(Database, "now", lambda *_, at=seconds: at)
        settle(ledger, begun(ledger, plan("k")), plan("k"), status)
    cost = ledger.costs(["k"])["k"]
    assert ledger.look_up(["k"]).refused == {"k"}
    assert (cost.refused, cost.last_error) == (True, "was refused")


@pytest.mark.parametrize("unfit", ["\x00", "\ud800", "\x1b", "\n"], ids=ascii)
def test_whatever_a_server_says_can_be_stored(ledger: Ledger, unfit: str) -> None:
    refused = Settlement(begun(ledger, plan("r")), plan("r"), "refused", error=f"bad{unfit}text")
    reply = REPLY._replace(finish_reason=f"stop{unfit}")
    ledger.write([refused, Settlement(begun(ledger, plan("a")), plan("a"), "answered", reply, reply.usage)], [])
    assert ledger.costs(["r"])["r"].last_error == "bad text"
    assert ledger.find_answers(["a"])["a"].reply.finish_reason == "stop "


def test_an_answer_may_hold_a_nul(ledger: Ledger) -> None:
    reply = REPLY._replace(message={"role": "assistant", "content": "a\x00b"}, text="a\x00b")
    ledger.settle(Settlement(begun(ledger, plan("a")), plan("a"), "answered", reply, reply.usage))
    assert ledger.find_answers(["a"])["a"].reply == reply


def test_more_keys_than_fit_one_query(ledger: Ledger) -> None:
    keys = [f"k{number}" for number in range(2 * KEYS_A_QUERY + 3)]
    some = [keys[0], *(keys[KEYS_A_QUERY + at] for at in (-1, 0)), *(keys[2 * KEYS_A_QUERY + at] for at in (-1, 0, 2))]
    for key in some:
        settle(ledger, begun(ledger, plan(key)), plan(key), "answered", Usage(input=3, output=1))
    assert set(ledger.find_answers(keys)) == set(some)
    assert len(ledger.look_up(keys).missing) == len(keys) - 6
    assert len(ledger.costs(keys)) == 6


def test_what_a_run_and_a_month_have_spent_is_told_by_purpose_model_and_status(ledger: Ledger) -> None:
    usage = Usage(input=100, cached_input=40, output=7, reasoning=2)
    of = plan("a")._replace(month="month/r/2026-11")
    settle(ledger, begun(ledger, of), of, "answered", usage)
    settle(ledger, begun(ledger, plan("b")), plan("b"), "unusable", usage)
    settle(ledger, begun(ledger, plan("c")), plan("c"), "unknown")
    judged = plan("d")._replace(purpose="judge", model="j")
    settle(ledger, begun(ledger, judged), judged, "answered", Usage())
    begun(ledger, plan("e"))
    found = {(row.purpose, row.model, row.status): row for row in ledger.spend("run")}
    assert {key: row.attempts for key, row in found.items()} == {
        ("judge", "j", "answered"): 1,
        ("teach", "m", "answered"): 1,
        ("teach", "m", "in_flight"): 1,
        ("teach", "m", "unknown"): 1,
        ("teach", "m", "unusable"): 1,
    }
    teach = found["teach", "m", "answered"]
    assert (teach.input_tokens, teach.cached_input_tokens, teach.output_tokens, teach.reasoning_tokens) == (
        100,
        40,
        7,
        2,
    )
    assert teach.cost_usd == Decimal("0.00027")
    total = add_up(found.values())
    assert (total.attempts, total.answered, total.unknown, total.in_flight) == (5, 2, 1, 1)
    assert total.cost_usd == Decimal("0.00054")
    assert (total.unknown_usd, total.estimate_usd) == (Decimal("0.01"), Decimal("0.00072"))
    assert [row.attempts for row in ledger.spend("month/r/2026-11")] == [1]


def test_an_unknown_bill_is_taken_for_its_upper_bound_before_there_is_a_mean(ledger: Ledger) -> None:
    settle(ledger, begun(ledger, plan("a")), plan("a"), "unknown")
    assert add_up(ledger.spend("run")).estimate_usd == Decimal("0.01")


def test_an_estimate_has_no_more_than_nine_decimals() -> None:
    spend = Spend(billed=3, unknown=1, cost_usd=Decimal("0.001"), unknown_usd=Decimal(1))
    assert spend.estimate_usd == Decimal("0.001333334")


def test_what_was_refused_for_good_is_not_missing(ledger: Ledger) -> None:
    settle(ledger, begun(ledger, plan("no")), plan("no"), "refused")
    settle(ledger, begun(ledger, plan("later")), plan("later"), "failed")
    assert ledger.look_up(["no", "later", "never"]).missing == {"later", "never"}


def test_what_ends_in_a_group_makes_room_for_what_begins_in_it(ledger: Ledger) -> None:
    first = begun(ledger, plan("a"), "0.01")
    ended = Settlement(first, plan("a"), "failed")
    assert ledger.write([ended], [(plan("b"), caps("0.01"))])[0].attempt_id is not None


def test_what_does_not_fit_leaves_room_for_what_does(ledger: Ledger) -> None:
    wanted = [plan("a", "0.006"), plan("b", "0.006"), plan("c", "0.004")]
    admissions = ledger.write([], [(of, caps("0.01")) for of in wanted])
    assert [admission.why_not for admission in admissions] == [None, "no_room", None]
    assert ledger.account("run").reserved_usd == Decimal("0.010")


def test_both_caps_hold_and_what_one_refuses_is_reserved_in_neither(ledger: Ledger) -> None:
    of = plan("a", "0.01")._replace(month="month/r/2026-11")
    begun(ledger, of)
    other = plan("b", "0.01", run="other")._replace(month="month/r/2026-11")
    assert ledger.begin(other, Caps(Decimal("0.01"), Decimal("0.019"))).why_not == "no_room"
    assert ledger.account("other").committed_usd == 0
    assert ledger.account("month/r/2026-11").committed_usd == Decimal("0.01")
    assert ledger.begin(other, Caps(Decimal("0.01"), Decimal("0.02"))).attempt_id is not None
    assert ledger.account("month/r/2026-11").committed_usd == Decimal("0.02")
    next_month = plan("c", "0.01", run="third")._replace(month="month/r/2026-12")
    assert ledger.begin(next_month, Caps(None, Decimal("0.01"))).attempt_id is not None


def test_the_cap_admits_its_last_cent_and_not_one_more(ledger: Ledger, url: str) -> None:
    begun(ledger, plan("a", "0.01"), "0.02")
    begun(ledger, plan("b", "0.01"), "0.02")
    assert ledger.begin(plan("c", "0.000000000001"), caps("0.02")).why_not == "no_room"
    assert len(rows(url)) == 2
    assert ledger.account("run").committed_usd == Decimal("0.02")


def test_a_settled_attempt_gives_back_what_it_did_not_use_and_an_unknown_one_nothing(ledger: Ledger) -> None:
    known, unknown = begun(ledger, plan("a", "0.01")), begun(ledger, plan("b", "0.01"))
    settle(ledger, known, plan("a", "0.01"), "answered", Usage(input=100))
    assert ledger.account("run").committed_usd == Decimal("0.01025")
    settle(ledger, unknown, plan("b", "0.01"), "unknown")
    assert ledger.account("run").committed_usd == Decimal("0.01025")


def test_each_run_has_its_own_cap(ledger: Ledger) -> None:
    begun(ledger, plan("a", "0.01", run="one"), "0.01")
    assert ledger.begin(plan("b", "0.01", run="one"), caps("0.01")).why_not == "no_room"
    assert ledger.begin(plan("b", "0.01", run="two"), caps("0.01")).attempt_id is not None


def test_eight_threads_never_overshoot_the_cap(ledger: Ledger, url: str) -> None:
    start = threading.Barrier(8)

    def spend(worker: int) -> int:
        start.wait()
        return sum(ledger.begin(plan(f"{worker}-{n}", "0.01"), caps("0.205")).attempt_id is not None for n in range(10))

    with ThreadPoolExecutor(8) as pool:
        admitted = sum(pool.map(spend, range(8)))
    assert admitted == 20
    assert len(rows(url)) == 20
    assert ledger.account("run").committed_usd == Decimal("0.20")


SPEND = """
import sys
from tests.ledger.test_ledger import Caps, Ledger, begun, plan, settle, Decimal, Usage
print("ready", flush=True)
sys.stdin.readline()
ledger = Ledger(sys.argv[1])
admitted = 0
for number in range(30):
    of = plan(f"{sys.argv[2]}-{number}", "0.01")
    attempt = ledger.begin(of, Caps(Decimal("0.305"))).attempt_id
    if attempt is not None:
        admitted += 1
        settle(ledger, attempt, of, "answered", Usage(output=1000))
print(admitted)
"""
HOLD = """
import sys, time
from tests.ledger.test_ledger import Ledger, begun, plan
ledger = Ledger(sys.argv[1])
for number in range(3):
    begun(ledger, plan(f"{sys.argv[2]}-{number}"))
print("holding", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(url: str) -> Callable[[str, str], subprocess.Popen[str]]:
    def run(code: str, name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, url, name]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    return run


@pytest.mark.flow
def test_four_processes_on_a_new_database_never_overshoot_the_cap(
    start: Callable[[str, str], subprocess.Popen[str]], url: str
) -> None:
    processes = [start(SPEND, name) for name in "abcd"]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    admitted = [int(process.communicate(timeout=30)[0]) for process in processes]
    assert sum(admitted) == 30
    assert len(rows(url)) == 30
    assert Ledger(url).account("run").committed_usd == Decimal("0.30")


@pytest.mark.flow
def test_what_a_killed_process_left_in_flight_becomes_unknown_at_its_bound_and_only_that(
    start: Callable[[str, str], subprocess.Popen[str]], url: str
) -> None:
    killed, alive = start(HOLD, "killed"), start(HOLD, "alive")
    try:
        for process in (killed, alive):
            assert process.stdout is not None
            assert process.stdout.readline() == "holding\n"
        ledger = Ledger(url)
        begun(ledger, plan("own"))
        assert ledger.close_orphans() == 0
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert ledger.close_orphans() == 3
        assert ledger.close_orphans() == 0
        statuses = {key: status for key, status, _ in rows(url)}
        assert statuses == {
            **{f"killed-{n}": "unknown" for n in range(3)},
            **{f"alive-{n}": "in_flight" for n in range(3)},
            "own": "in_flight",
        }
        assert ledger.costs(["killed-0"])["killed-0"].unknown_usd == Decimal("0.01")
        assert ledger.account("run").committed_usd == Decimal("0.07")
    finally:
        for process in (killed, alive):
            process.kill()
            process.communicate()


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "sqlite:////proc/no/ledger.db", "nosuchdb://host/x"])
def test_an_address_that_opens_nothing_is_a_usage_error_that_names_it(url: str) -> None:
    with pytest.raises(UsageError, match="Give an address such as") as caught:
        Ledger(url)
    assert url in str(caught.value)


def test_a_ledger_of_another_schema_is_refused(ledger: Ledger, url: str) -> None:
    with create_engine(driver(url)).begin() as connection:
        connection.execute(text("UPDATE meta SET value = '99' WHERE name = 'schema_version'"))
    with pytest.raises(UsageError, match="schema version 99"):
        Ledger(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host:port/x",
        "postgresql://me:secret/x@host:port/x",
        "postgresql://me:secret@127.0.0.1:1/x",
        "postgresql://me:secret/x@127.0.0.1:1/x",
        "postgresql://me:pass@secret@127.0.0.1:1/x",
        "postgresql://me:secret/x",
        "postgresql://127.0.0.1:1/x?user=me&password=secret",
        "postgresql://127.0.0.1:1/x?user=me&passwort=secret",
        "mysql://me:secret@host/x",
        "mysql://host/x?password=secret",
    ],
)
def test_the_password_of_an_address_is_in_no_message(url: str) -> None:
    with pytest.raises(UsageError, match=r"^ledger \w+(\+psycopg)?://.*: ") as caught:
        Ledger(url)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_file_that_is_no_database_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, " * 100)
    with pytest.raises(UsageError, match="not a database"):
        Ledger(f"sqlite:///{tmp_path / 'notes.txt'}")


def test_an_attempt_that_was_taken_for_an_orphans_is_settled_without_freeing_its_bound_twice(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine takes one whose lease ran out, while it was suspended, for dead."""
    of = plan("k")
    attempt = begun(ledger, of)
    begun(ledger, plan("other"))
    monkeypatch.setattr("potstill.owner.Owner.is_dead", lambda owner: True)
    assert ledger.close_orphans() == 2
    assert ledger.account("run").committed_usd == Decimal("0.02")
    settle(ledger, attempt, of, "answered", Usage(input=100))
    assert ledger.account("run").committed_usd == Decimal("0.01025")
    assert ledger.find_answers(["k"])
    assert [(key, status) for key, status, _ in rows(url)] == [("k", "answered"), ("other", "unknown")]
    with create_engine(driver(url)).connect() as connection:
        assert connection.execute(text("SELECT reserved_usd FROM accounts")).scalar_one() == 0


def test_a_reader_blocks_no_writer(ledger: Ledger, url: str) -> None:
    """The keys are drawn while the reading transaction is open."""
    begun(ledger, plan("k0"))
    writer = Ledger(url)

    def keys() -> Iterator[str]:
        yield from (f"k{number}" for number in range(600))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(begun, writer, plan("late")).result(timeout=5)

    assert list(ledger.costs(keys())) == ["k0"]
    assert ledger.costs(["late"])["late"].attempts == 1


def test_an_owner_on_another_machine_keeps_its_claim_as_long_as_its_lease(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(ledger, plan("k"))
    monkeypatch.setattr("potstill.owner.Owner.is_on_this_machine", lambda owner: False)
    other = Ledger(url)
    assert other.close_orphans() == 0
    with create_engine(driver(url)).begin() as connection:
        connection.execute(text("UPDATE owners SET lease_until = lease_until - 61"))
    ledger.renew_lease()
    assert other.close_orphans() == 0, "it was heard of in time"
    with create_engine(driver(url)).begin() as connection:
        connection.execute(text("UPDATE owners SET lease_until = lease_until - 61"))
    assert other.close_orphans() == 1
    assert other.begin(plan("k")).attempt_id is not None


def test_a_clock_that_is_set_takes_no_claim_from_the_living(
    ledger: Ledger, url: str, set_clock: Callable[[float], None]
) -> None:
    begun(ledger, plan("k"))
    ledger.begin_batch("token", "openai", "https://api.example", "run", [(plan("in batch"), NO_CAPS)])
    set_clock(3600)
    other = Ledger(url)
    assert other.close_orphans() == 0
    assert not other.claim_batch("token")
    assert ledger.claim_batch("token")


def test_an_owner_of_an_earlier_version_keeps_its_claim_as_long_as_its_lease(ledger: Ledger, url: str) -> None:
    begun(ledger, plan("k"))
    old = this_process().model_copy(update={"boot_id": this_process().boot_id.rpartition(" ")[0], "started_at": 1.5e9})
    with create_engine(driver(url)).begin() as connection:
        connection.execute(text("UPDATE owners SET process = :old"), {"old": old.model_dump_json()})
    other = Ledger(url)
    assert other.close_orphans() == 0
    with create_engine(driver(url)).begin() as connection:
        connection.execute(text("UPDATE owners SET lease_until = lease_until - 61"))
    assert other.close_orphans() == 1


def test_two_machines_of_one_name_keep_their_claims_from_each_other(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(ledger, plan("k"))
    monkeypatch.setattr("potstill.owner._boot_id", lambda: "another pid:[4026531836]")
    other = Ledger(url)
    assert other.close_orphans() == 0
    assert other.begin(plan("k")) == Admission(None, "claimed")


@pytest.mark.parametrize(("query", "level"), [("", 1), ("?synchronous=normal", 1), ("?synchronous=FULL", 2)])
def test_an_address_says_whether_a_power_cut_may_lose_the_last_commits(tmp_path: Path, query: str, level: int) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}{query}")
    with ledger._database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == level
    with pytest.raises(UsageError, match="synchronous is one of NORMAL, FULL"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.db'}?synchronous=off")
