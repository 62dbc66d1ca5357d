import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from potstill.errors import UsageError
from potstill.ledger import Ledger, Settlement
from tests.ledger.test_ledger import REPLY, begun, driver, plan

VERSION_1 = """
CREATE TABLE meta (name VARCHAR NOT NULL, value VARCHAR NOT NULL, PRIMARY KEY (name));
CREATE TABLE runs (run VARCHAR NOT NULL, spent_usd BIGINT NOT NULL, reserved_usd BIGINT NOT NULL, PRIMARY KEY (run));
CREATE TABLE attempts (
    id INTEGER NOT NULL, answer_key VARCHAR NOT NULL, prompt_id VARCHAR NOT NULL, run VARCHAR NOT NULL,
    purpose VARCHAR NOT NULL, provider VARCHAR NOT NULL, model VARCHAR NOT NULL, status VARCHAR NOT NULL,
    http_status INTEGER, error TEXT, input_tokens INTEGER NOT NULL, cached_input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL, cost_usd BIGINT, bound_usd BIGINT NOT NULL,
    price VARCHAR NOT NULL, owner VARCHAR NOT NULL, started_at FLOAT NOT NULL, seconds FLOAT,
    PRIMARY KEY (id), FOREIGN KEY(run) REFERENCES runs (run)
);
CREATE INDEX attempts_by_key ON attempts (answer_key);
CREATE INDEX attempts_by_run ON attempts (run);
CREATE INDEX attempts_by_status ON attempts (status);
CREATE TABLE answers (
    answer_key VARCHAR NOT NULL, attempt_id INTEGER NOT NULL, message TEXT NOT NULL, finish_reason VARCHAR NOT NULL,
    PRIMARY KEY (answer_key), FOREIGN KEY(attempt_id) REFERENCES attempts (id)
);
INSERT INTO meta VALUES ('id', 'abcdef'), ('schema_version', '1');
INSERT INTO runs VALUES ('teach/1', 3000000, 40000000);
"""
ATTEMPT = "INSERT INTO attempts VALUES (?,?,'p','teach/1','teach','openai','m',?,200,?,7,2,3,1,?,20000000,?,?,1.0,0.5)"
OWNER = '{"host":"elsewhere","boot_id":"","pid":1,"started_at":1.0}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of the first version: an answer, a refusal, and two attempts for one key that a crash left in flight."""
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(VERSION_1)
        rows = [
            (1, "a", "answered", None, 3_000_000, '{"source":"given"}', OWNER),
            (2, "b", "refused", "too long", 0, '{"source":"list"}', OWNER),
            (3, "c", "in_flight", None, None, '{"source":"given"}', OWNER),
            (4, "c", "in_flight", None, None, '{"source":"given"}', '{"host":"another"}'),
        ]
        connection.executemany(ATTEMPT, rows)
        connection.execute("""INSERT INTO answers VALUES ('a', 1, '{"role":"assistant","content":"yes"}', 'stop')""")
    return path


def test_what_the_first_version_paid_for_stays_paid_for(path: Path) -> None:
    ledger = Ledger(f"sqlite:///{path}")
    assert ledger.id == "abcdef"
    answer = ledger.find_answers(["a"])["a"]
    assert (answer.reply.text, answer.reply.usage.input, answer.reply.usage.cached_input) == ("yes", 7, 2)
    standing = ledger.look_up(["a", "b", "c"])
    assert (standing.missing, standing.refused) == ({"c"}, {"b"})
    costs = ledger.costs(["a", "b", "c"])
    assert costs["a"].cost_usd == Decimal("0.000003")
    assert costs["b"].last_error == "too long"
    assert (costs["c"].unknown, costs["c"].unknown_usd) == (2, Decimal("0.00004"))
    account = ledger.account("teach/1")
    assert (account.spent_usd, account.reserved_usd) == (Decimal("0.000043"), 0)
    assert ledger.close_orphans() == 0


def test_it_is_migrated_once_and_can_be_written_then(path: Path) -> None:
    Ledger(f"sqlite:///{path}")
    again = Ledger(f"sqlite:///{path}")
    begun(again, plan("c"))
    begun(again, plan("d"))
    with closing(sqlite3.connect(path)) as connection:
        assert {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} == {
            *("meta", "accounts", "owners", "prices", "batches", "attempts", "answers", "given_up")
        }


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE attempts SET model = NULL WHERE 0")
        connection.execute("CREATE TABLE prices (id INTEGER PRIMARY KEY, other TEXT)")
    with pytest.raises(UsageError, match="prices has no column named content"):
        Ledger(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM attempts").fetchone() == (4,)
        assert connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone() == ("1",)


def test_the_second_version_had_nothing_given_up(ledger_url: str) -> None:
    before = Ledger(ledger_url)
    before.settle(Settlement(begun(before, plan("k")), plan("k"), "answered", REPLY, REPLY.usage, 200))
    engine = create_engine(driver(ledger_url))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE given_up"))
        connection.execute(text("UPDATE meta SET value = '2' WHERE name = 'schema_version'"))
    for ledger in (Ledger(ledger_url), Ledger(ledger_url)):
        assert ledger.id == before.id
        assert ledger.find_answers(["k"])["k"].reply == REPLY
        assert ledger.look_up(["k", "new"]).missing == {"new"}
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT value FROM meta WHERE name = 'schema_version'")) == "3"
    engine.dispose()
