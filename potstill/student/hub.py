"""What a hub id means now: one commit, so that a cache never takes new weights for old ones."""

from functools import cache
from pathlib import Path

from potstill.errors import DataError

REPLY_SECONDS = 20.0


@cache
def find_commit(repo: str, revision: str | None) -> str:
    """The commit that a revision (default: the main branch) of a hub repository names; offline, as it was last fetched.

    Errors: `DataError` where the hub knows no such repository or revision, or can be asked neither now nor from its cache.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    named = f"student.base {repo}" + (f" at revision {revision}" if revision else "")
    try:
        commit = HfApi().model_info(repo, revision=revision, timeout=REPLY_SECONDS).sha
    except HFValidationError:
        raise DataError(f"{named}: neither a directory nor a hub id such as org/name") from None
    except RevisionNotFoundError:
        raise DataError(f"{named}: the hub has the model, but not this revision") from None
    except RepositoryNotFoundError:
        raise DataError(f"{named}: the hub has no such model, or it needs `hf auth login`") from None
    except Exception as error:  # noqa: BLE001 - whatever its client raises, the hub did not reply
        commit = _cached_commit(repo, revision)
        if commit is None:
            why = str(error).partition("\n")[0]
            raise DataError(f"{named}: the hub cannot be asked ({why}), and it is not in the local cache") from None
    assert commit is not None
    return commit


def _cached_commit(repo: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None
