"""What workers of pool gpu do: a child run, followed to its end, and its result out of the store."""

from typing import Any

from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.logging import get_run_logger

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.errors import ArtifactMissingError, ChildRunError, SubprocessError
from potstill.recipe import Recipe
from tasks.cancelling import cancel_own_run
from tasks.child_runs import follow

TRAIN, EVALUATE = "train-student/gpu", "evaluate-student/gpu"


def run_on_gpu(deployment: str, key: StageKey, name: str, recipe: Recipe, given: dict[str, Any]) -> ArtifactRef:
    """In a task: what `key` names, made by a run of `deployment` unless the store holds it already.

    A run that ends in any way but well ends this one so too; where this one is stopped, the child is cancelled at once.

    Errors: `ChildRunError` (it failed: no use in trying again), `SubprocessError` (it crashed), `ArtifactMissingError` (it
    wrote to another store).
    """
    store = open_store()
    if (found := store.lookup(key)) is not None:
        return found
    parameters = {"recipe": recipe.model_dump(mode="json"), **{what: _plain(value) for what, value in given.items()}}
    child = run_deployment(deployment, parameters=parameters, flow_run_name=name, timeout=0)
    assert isinstance(child, FlowRun)
    get_run_logger().info("%s runs on pool %s as %s", name, child.work_pool_name, child.id)
    _raise_unless_done(follow(child), name)
    if (made := store.lookup(key)) is None:
        raise ArtifactMissingError(
            f"{name} is done, but {store.root} does not hold {key}: give the workers of pool gpu the same POTSTILL_HOME "
            "or POTSTILL_STORE as those of pool cpu"
        )
    return made


def _raise_unless_done(state: State[Any], name: str) -> None:
    said = f"{name}: {state.name}: {state.message or 'no reason given'}"
    match state.type:
        case StateType.COMPLETED:
            return
        case StateType.CANCELLED | StateType.CANCELLING:
            cancel_own_run(said)
            raise ChildRunError(said)
        case StateType.CRASHED:
            raise SubprocessError(said)
        case _:
            raise ChildRunError(said)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
