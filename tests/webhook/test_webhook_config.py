"""What the receiver is started with: its file, its recipes, its secrets; and its command."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from potstill.errors import RecipeError, UsageError
from potstill.webhook.config import load_config, load_recipes
from potstill.webhook.rate import TokenBucket
from potstill.webhook.signatures import VARIABLE, read_secrets
from tests.webhook.conftest import CLIENT, SECRETS

ROOT = Path(__file__).parents[2]


class TestFile:
    def test_the_one_that_is_shipped_is_the_default_and_names_the_recipes(self, monkeypatch) -> None:
        monkeypatch.chdir(ROOT)
        config = load_config(Path("deployments/webhook.yaml"))
        assert config.model_dump(exclude_unset=False) == type(config)(recipes=("recipes/*.yaml",)).model_dump()
        assert "demo" in load_recipes(config.recipes)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("recipes: []", "recipes: Tuple should have at least 1 item"),
            ("recipe: [x]", "recipe: Extra inputs are not permitted"),
            ("recipes: [x]\nrate: {burst: 0}", "rate.burst: Input should be greater than or equal to 1"),
            ("- x", "the file: Input should be a valid dictionary"),
            ("", "the file: Input should be a valid dictionary"),
            ("recipes: [", "cannot be read as YAML"),
        ],
    )
    def test_what_is_wrong_in_it_is_named(self, tmp_path, text, said) -> None:
        path = tmp_path / "webhook.yaml"
        path.write_text(text)
        with pytest.raises(UsageError, match=r"--config .*webhook\.yaml: ") as refused:
            load_config(path)
        assert said in str(refused.value)

    def test_recipes_that_are_missing_or_share_a_name_are_refused(self, tmp_path) -> None:
        with pytest.raises(RecipeError, match=r"gone-\*\.yaml: no such file"):
            load_recipes((str(tmp_path / "gone-*.yaml"),))
        for name in ("a", "b"):
            (tmp_path / f"{name}.yaml").write_text((ROOT / "recipes/demo.yaml").read_text())
        with pytest.raises(RecipeError, match=r"b\.yaml: a second recipe named demo"):
            load_recipes((str(tmp_path / "*.yaml"),))


class TestSecrets:
    @pytest.mark.parametrize(
        "value", ["", "  ", "whsec_", "hunter2", "whsec_!!!", "whsec_c2hvcnQ=", f"{SECRETS[0]} s3cret", SECRETS[0][6:]]
    )
    def test_none_or_a_weak_or_mistyped_one_is_refused_without_repeating_it(self, monkeypatch, value) -> None:
        monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(UsageError, match="token_bytes") as refused:
            read_secrets()
        assert not any(len(secret) > 6 and secret in str(refused.value) for secret in value.split())

    def test_several_stand_with_any_space_between_them(self, monkeypatch) -> None:
        monkeypatch.setenv(VARIABLE, f"\n{SECRETS[0]}\t{SECRETS[1]}  ")
        read_secrets()


def test_a_bucket_lets_a_burst_through_and_then_a_steady_stream() -> None:
    now = [100.0]
    bucket = TokenBucket(2, 3, lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] += 0.5
    assert [bucket.take(), bucket.take()] == [0, 0.5]
    now[0] += 1000
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


@pytest.mark.flow
class TestCommand:
    @pytest.fixture
    def place(self, tmp_path) -> Path:
        recipe = yaml.safe_load((ROOT / "recipes/demo.yaml").read_text())
        (tmp_path / "demo.yaml").write_text(yaml.safe_dump(recipe))
        (tmp_path / "webhook.yaml").write_text("recipes: [demo.yaml]")
        return tmp_path

    def start(self, place: Path, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if name != VARIABLE} | {
            "PYTHONPATH": str(ROOT),
            "POTSTILL_HOME": str(place / "home"),
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
            VARIABLE: SECRETS[0],
            **changes,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "potstill.cli", "webhook", "--config", "webhook.yaml", "--port", "0", *arguments],
            cwd=place,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def test_it_says_where_it_listens_on_loopback_and_a_signal_ends_it_within_seconds(self, place) -> None:
        with self.start(place) as process:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            assert url.startswith("http://127.0.0.1:")
            assert CLIENT.get(f"{url}/health").json() == {"status": "ok"}
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (0, "")
        assert time.monotonic() - began < 6

    def test_without_a_secret_it_does_not_start(self, place) -> None:
        for secret in ("", "whsec_" + base64.b64encode(b"short").decode()):
            with self.start(place, **{VARIABLE: secret}) as process:
                _, said = process.communicate(timeout=30)
            assert process.returncode == 2
            assert said.startswith("error: ")
            assert "Traceback" not in said
