"""Prefect's server, and what a night needs of it: pools, workers, the automation for dead runs, deployments, blocks."""

import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import Any, NamedTuple

import httpx

from potstill.doctor.finding import Check, Finding, fail, ok, warn
from potstill.errors import OrchestratorError
from potstill.prefect_api import AUTH_VARIABLE, URL_VARIABLE, PrefectApi, prefect_api

HEALTH_SECONDS = 4.0
NOTABLE_SKEW_SECONDS, HARMFUL_SKEW_SECONDS = 5.0, 60.0
"""Leases and heartbeats are compared across machines in tens of seconds; a webhook's signature lives five minutes."""
SIGNS = {
    "prefect.flow-run.heartbeat": "without a heartbeat",
    "prefect.flow-run.Pending": "that a worker took and never began",
    "prefect.flow-run.Cancelling": "that were dead when cancelled",
}
"""After which of its events a run that says nothing more is dead."""
UP = "make up"
OF_A_RECIPE = ("distill-student", "redistill")
"""Flows of which each recipe has a deployment; the second is that of nights, and what the webhook starts."""
ON_GPU = ("train-student/gpu", "evaluate-student/gpu")


class Wanted(NamedTuple):
    """What the recipe that is asked about needs."""

    recipes: tuple[str, ...] = ()
    """Names of recipes that should be deployed."""
    is_given: bool = False
    """Whether the user named the recipe; else every recipe of the checkout is looked for."""
    uses_gpu_pool: bool = False
    block: str | None = None
    """The Secret block that holds the teacher's key."""


def check_server() -> Iterator[Finding]:
    """Whether the server answers, to whom, in which version, and by which clock."""
    if not os.environ.get(URL_VARIABLE):
        remedy = f"set {URL_VARIABLE}, such as http://127.0.0.1:4200/api, or start one: {UP}"
        yield warn("prefect", "no server is named: runs by hand work, nothing runs by night or webhook", remedy)
        return
    api = prefect_api()
    try:
        began = time.time()
        reply = httpx.get(f"{api.url}/health", timeout=HEALTH_SECONDS)
        ended = time.time()
    except httpx.HTTPError as error:
        yield fail("prefect", f"{api.url} does not answer ({type(error).__name__})", f"start it: {UP}")
        return
    if reply.status_code != 200:
        yield fail("prefect", f"{api.url}/health answers {reply.status_code}", f"{URL_VARIABLE} ends in /api: check it")
        return
    yield ok("prefect", f"{api.url} answers")
    yield _clock(reply.headers.get("date"), (began + ended) / 2)
    yield from _version(api)


def checks_of(wanted: Wanted) -> list[Check]:
    """What to ask a server that answers and lets us in."""
    api = prefect_api()
    pools = ("cpu", "gpu") if wanted.uses_gpu_pool else ("cpu",)
    checks = [
        Check("pools", lambda: check_pools(api, pools)),
        Check("automation", lambda: check_automation(api)),
        Check("deployments", lambda: check_deployments(api, wanted)),
    ]
    if wanted.block is not None:
        block = wanted.block
        checks.append(Check("block", lambda: check_block(api, block)))
    return checks


def check_pools(api: PrefectApi, needed: Sequence[str]) -> Iterator[Finding]:
    """Each pool, and the workers that look after it."""
    known = {pool["name"]: pool for pool in api.find("work_pools")}
    for name in dict.fromkeys((*needed, *sorted({"cpu", "gpu"} & known.keys()))):
        pool = known.get(name)
        if pool is None:
            yield fail(f"pool {name}", "there is none", f"{UP}, or prefect work-pool create {name} --type process")
            continue
        limit = pool.get("concurrency_limit")
        said = f"{pool['type']}, at most {limit or 'any number of'} runs"
        if pool.get("is_paused"):
            yield fail(f"pool {name}", "paused", f"prefect work-pool resume {name}")
        elif name == "gpu" and limit is None:
            remedy = "prefect work-pool set-concurrency-limit gpu 1, for each card"
            yield warn(f"pool {name}", f"{said}: two trainings may share a card", remedy)
        else:
            yield ok(f"pool {name}", said)
        yield _workers(name, api.post(f"/work_pools/{name}/workers/filter", {}), is_needed=name in needed)


def check_automation(api: PrefectApi) -> Finding:
    """A run whose process and worker died together would go on for ever, and hold its slot."""
    automations = api.find("automations")
    for event, runs in SIGNS.items():
        listening = [found for found in automations if _waits_after(event, found.get("trigger") or {})]
        if not listening:
            return fail("automation", f"none ends runs {runs}", f"{UP}, or python -m deployments.automations")
        if not any(found.get("enabled") for found in listening):
            said = f"{listening[0]['name']!r} is disabled"
            return fail("automation", said, "enable it under Automations in Prefect's UI")
    return ok("automation", f"runs are ended {', '.join(SIGNS.values())}")


def check_deployments(api: PrefectApi, wanted: Wanted) -> Iterator[Finding]:
    """Those of each recipe, by hand and by night or webhook; and what it calls on pool gpu."""
    names = [f"{flow}/{recipe}" for recipe in wanted.recipes for flow in OF_A_RECIPE]
    if wanted.uses_gpu_pool:
        names += ON_GPU
    found = _deployments(api, names)
    for name in names:
        yield _deployment(name, found.get(name), is_needed=wanted.is_given)


def check_block(api: PrefectApi, name: str) -> Finding:
    """The Secret block is there; what it holds is not asked for."""
    try:
        api.get(f"/block_types/slug/secret/block_documents/name/{name}?include_secrets=false")
    except OrchestratorError as error:
        if " answers 404 " not in str(error):
            raise
        return fail("block", f"no Secret block {name}", "make it under Blocks in Prefect's UI")
    return ok("block", f"Secret block {name} is there")


def skew(date: str | None, now: float) -> float | None:
    """Seconds that the clock here is ahead of the one that wrote the Date header; None where there is no such header.

    The header has whole seconds, so half a second is what it means on the mean.
    """
    try:
        return now - (parsedate_to_datetime(date or "").timestamp() + 0.5)
    except ValueError:
        return None


def clock_finding(whose: str, date: str | None, now: float) -> Finding:
    """What a Date header says of the clock here."""
    ahead = skew(date, now)
    if ahead is None:
        return warn("clock", f"{whose} says no time", "compare the clocks by hand")
    said = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {whose}"
    remedy = "let NTP set the clock here, and there: timedatectl set-ntp true"
    if abs(ahead) > HARMFUL_SKEW_SECONDS:
        return fail("clock", said, remedy)
    if abs(ahead) > NOTABLE_SKEW_SECONDS:
        return warn("clock", said, remedy)
    return ok("clock", f"agrees with {whose} within {NOTABLE_SKEW_SECONDS:g} s")


def _clock(date: str | None, now: float) -> Finding:
    return clock_finding("Prefect", date, now)


def _version(api: PrefectApi) -> Iterator[Finding]:
    """Asked with the auth string, then without one: /health answers anybody."""
    try:
        theirs = api.get("/admin/version")
    except OrchestratorError as error:
        yield fail("prefect auth", str(error), f"set {AUTH_VARIABLE} to what the server has")
        return
    if api.auth is None:
        said = "none is asked for: whoever reaches the server starts runs and changes deployments"
        yield warn("prefect auth", said, f"{UP} sets one; else PREFECT_SERVER_API_AUTH_STRING at the server")
    elif _is_open(api):
        said = "the server lets in whoever comes without the auth string"
        yield warn("prefect auth", said, "set PREFECT_SERVER_API_AUTH_STRING at the server")
    else:
        yield ok("prefect auth", "the auth string is asked for, and ours is accepted")
    ours = metadata.version("prefect")
    if theirs == ours:
        yield ok("prefect version", f"{theirs}, the same as here")
    else:
        said = f"the server is {theirs}, here is {ours}"
        yield warn("prefect version", said, "install the same version in both places")


def _is_open(api: PrefectApi) -> bool:
    try:
        api._replace(auth=None).get("/admin/version")
    except OrchestratorError:
        return False
    return True


def _workers(pool: str, workers: list[dict[str, Any]], *, is_needed: bool) -> Finding:
    """`make up` and compose make pool gpu on every machine: without a worker it does no harm until a recipe trains on it."""
    name = f"workers {pool}"
    online = [worker for worker in workers if worker.get("status") == "ONLINE"]
    if online:
        return ok(name, f"{len(online)} online, the last heartbeat {_age(online)}")
    said = f"none online, the last heartbeat {_age(workers)}" if workers else "there never was one"
    remedy = f"{UP}, or prefect worker start --pool {pool}"
    return fail(name, said, remedy) if is_needed else warn(name, f"{said}: runs of this pool would wait", remedy)


def _age(workers: list[dict[str, Any]]) -> str:
    times = [datetime.fromisoformat(time) for worker in workers if (time := worker.get("last_heartbeat_time"))]
    return f"{(datetime.now(UTC) - max(times)).total_seconds():.0f} s ago" if times else "unknown"


def _waits_after(event: str, trigger: dict[str, Any]) -> bool:
    events = {*(trigger.get("after") or ()), *(trigger.get("expect") or ())}
    inner = [part for part in trigger.get("triggers") or () if isinstance(part, dict)]
    is_proactive = trigger.get("posture") == "Proactive"
    return (is_proactive and event in events) or any(_waits_after(event, part) for part in inner)


def _deployments(api: PrefectApi, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By flow/name."""
    pairs = [name.split("/") for name in names]
    flows = api.find("flows", flows={"name": {"any_": sorted({flow for flow, _ in pairs})}})
    flow_names = {flow["id"]: flow["name"] for flow in flows}
    found = api.find("deployments", deployments={"name": {"any_": sorted({name for _, name in pairs})}})
    return {f"{flow_names.get(one['flow_id'])}/{one['name']}": one for one in found}


def _deployment(name: str, found: dict[str, Any] | None, *, is_needed: bool) -> Finding:
    if found is None:
        said, remedy = f"no {name}", "prefect --no-prompt deploy --all, with its entry in prefect.yaml"
        return fail("deployment", said, remedy) if is_needed else warn("deployment", said, remedy)
    schedules = found["schedules"]
    if found["paused"] and schedules:
        remedy = "resume it on its page in Prefect's UI"
        return warn("deployment", f"{name} is paused: its schedules do not run", remedy)
    on = sum(schedule["active"] for schedule in schedules)
    said = f"{on} of {len(schedules)} schedules on" if schedules else "no schedule"
    return ok("deployment", f"{name} on pool {found['work_pool_name']}, {said}")
