"""The alerts file, and what becomes of it; no server runs."""

from pathlib import Path

import pytest

from deployments.alerts.blocks import block_of, mail_address
from deployments.alerts.config import Alert, AlertsFile, Email, load_alerts
from potstill.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]
MAIL = Email(to="email", smtp_env="SMTP", sender="potstill@example.com", recipients=["a@example.com", "b@example.com"])


def _load(tmp_path: Path, text: str) -> AlertsFile:
    file = tmp_path / "alerts.yaml"
    file.write_text(text)
    return load_alerts(file)


def test_the_example_is_an_alerts_file_and_so_is_each_of_its_commented_targets(tmp_path: Path) -> None:
    text = (ROOT / "deployments" / "alerts.yaml").read_text()
    assert [target.to for target in _load(tmp_path, text).notify] == ["slack"]
    uncommented = "\n".join(
        line.replace("  # ", "  ", 1) if line.startswith("  # ") else line for line in text.splitlines()
    )
    assert [target.to for target in _load(tmp_path, uncommented).notify] == ["slack", "webhook", "email", "block"]


def test_left_out_on_means_every_alert_and_bare_on_is_no_boolean(tmp_path: Path) -> None:
    [every] = _load(tmp_path, "notify: [{to: slack, url_env: SLACK}]").notify
    assert every.on == list(Alert)
    [some] = _load(tmp_path, "notify:\n  - to: slack\n    url_env: SLACK\n    on: [failed, budget]\n").notify
    assert some.on == ["failed", "budget"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("notify: [{to: slack, url_env: 'https://hooks.slack.com/services/T/B/X'}]", "url_env"),
        ("notify: [{to: slack, url_env: A}, {to: slack, url_env: B}]", "give each a `name`"),
        ("notify: [{to: slack, url_env: A, on: [faild]}]", "on.0"),
        ("notify: [{to: telegram}]", "notify.0"),
        ("notify: [{to: slack, url_env: A, recipe: demo}]", "recipe"),
        ("notify: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=r"alerts\.yaml") as error:
        _load(tmp_path, text)
    assert said in str(error.value)
    assert "T/B/X" not in str(error.value), "a key that was written into the file is not said again"


def test_a_variable_that_is_not_set_or_holds_something_else_is_named_without_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [target] = _load(tmp_path, "notify: [{to: slack, url_env: SLACK}]").notify
    monkeypatch.delenv("SLACK", raising=False)
    with pytest.raises(UsageError, match="SLACK is not set"):
        block_of(target)
    monkeypatch.setenv("SLACK", "https://chat.example.com/hooks/secret-token")
    with pytest.raises(UsageError, match="to: webhook") as error:
        block_of(target)
    assert "secret-token" not in str(error.value)


@pytest.mark.parametrize(
    ("server", "start", "mode"),
    [
        ("smtps://user:pass%40word@mail.example.com", "mailtos://user:pass%40word@mail.example.com:465?", "mode=ssl"),
        ("smtp://user:p@mail.example.com", "mailtos://user:p@mail.example.com:587?", "mode=starttls"),
        ("smtp://mail.example.com:25", "mailtos://mail.example.com:25?", "mode=starttls"),
        ("smtp://127.0.0.1:2525", "mailto://127.0.0.1:2525?", "mode=insecure"),
    ],
)
def test_mail_goes_without_tls_to_this_machine_only(server: str, start: str, mode: str) -> None:
    address = mail_address(MAIL, server)
    assert address.startswith(start)
    assert mode in address
    assert "to=a%40example.com%2Cb%40example.com" in address


def test_no_secret_stands_in_a_field_that_prefect_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOOK", "https://chat.example.com/hooks/secret-token")
    monkeypatch.setenv("TOKEN", "secret-token")
    [target] = _load(tmp_path, "notify: [{to: webhook, url_env: HOOK, token_env: TOKEN}]").notify
    block = block_of(target)
    assert block is not None
    assert "secret-token" not in block.model_dump_json()
    assert "secret-token" not in repr(block)
