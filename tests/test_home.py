"""State lies where POTSTILL_HOME says, else beside the user's work, and is the user's alone."""

import stat

from potstill.home import potstill_home


def test_the_variable_decides(monkeypatch, tmp_path):
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "a" / "b"))
    assert potstill_home() == tmp_path / "a" / "b"
    assert stat.S_IMODE(potstill_home().stat().st_mode) == 0o700


def test_without_it_the_working_directory_does(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for value in (None, ""):
        monkeypatch.delenv("POTSTILL_HOME", raising=False) if value is None else monkeypatch.setenv(
            "POTSTILL_HOME", value
        )
        assert potstill_home() == tmp_path / ".potstill"


def test_a_tilde_is_the_users_home_and_a_relative_path_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("POTSTILL_HOME", "~/state")
    assert potstill_home() == tmp_path / "user" / "state"
    monkeypatch.setenv("POTSTILL_HOME", "state")
    assert potstill_home() == tmp_path / "state"
