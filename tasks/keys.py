"""Keys out of Prefect Secret blocks: read where they are needed, kept in memory, handed to nothing that Prefect records."""

from prefect.blocks.system import Secret

from potstill.errors import NotAuthorisedError


def load_block(name: str) -> str:
    """What a Secret block holds.

    Errors: `NotAuthorisedError` where there is no such block, or where it holds something else than text.
    """
    try:
        block = Secret.load(name)
    except ValueError:
        raise NotAuthorisedError(
            f"there is no Secret block {name} on this Prefect server: make it under Blocks in the UI"
        ) from None
    assert isinstance(block, Secret)
    value = block.get()
    if not isinstance(value, str):
        raise NotAuthorisedError(f"Secret block {name} holds a {type(value).__name__}: save the key as text")
    return value
