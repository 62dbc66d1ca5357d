"""The exception tree. One root, one class per cause; each is also a type of the standard library.

    PotstillError                      exit 1
    ├── UsageError (ValueError)        exit 2   the caller can mend it: recipe, data, flags
    │   ├── RecipeError                         a recipe that cannot be read
    │   ├── DataError                           input that cannot be used
    │   └── UnknownPriceError (LookupError)     a model whose price nobody knows
    ├── NotAuthorisedError (PermissionError)  exit 6   key missing, foreign host, refused, terms
    ├── BudgetReachedError (RuntimeError)  exit 5   the cap does not admit the next request
    ├── LedgerError (RuntimeError)     exit 1   a ledger that cannot be read or written for now
    ├── ArtifactError (OSError)        exit 1
    │   ├── ArtifactMissingError (FileNotFoundError)
    │   ├── ArtifactDamagedError
    │   └── StoreUnreachableError               the shared store does not answer for now
    ├── TeacherError (ConnectionError) exit 1
    │   ├── TransientTeacherError               worth asking again
    │   └── PermanentTeacherError               the same request would fail again
    ├── InboxError (OSError)           exit 1   an inbox that cannot be read or written for now
    ├── OrchestratorError (ConnectionError) exit 1   Prefect's server does not answer, or refuses
    ├── SubprocessError (RuntimeError) exit 1   training, generation or serving child failed
    │   └── ChildRunError                       a run on another worker failed, after its own retries
    └── ReleaseError (RuntimeError)    exit 1   a version or alias that cannot be what was asked

A rejected or undecided gate is a result, not an error: see `potstill.gate`.
Every message holds the value, the place and the remedy. All are picklable: the message is the only argument.
"""


class PotstillError(Exception):
    """Root of everything that Potstill raises on purpose."""

    exit_code = 1
    fatal = True
    """False where the same call may succeed later without a change by the caller."""


class UsageError(PotstillError, ValueError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class DataError(UsageError):
    pass


class UnknownPriceError(UsageError, LookupError):
    pass


class NotAuthorisedError(PotstillError, PermissionError):
    exit_code = 6


class BudgetReachedError(PotstillError, RuntimeError):
    exit_code = 5


class LedgerError(PotstillError, RuntimeError):
    pass


class ArtifactError(PotstillError, OSError):
    pass


class ArtifactMissingError(ArtifactError, FileNotFoundError):
    pass


class ArtifactDamagedError(ArtifactError):
    pass


class StoreUnreachableError(ArtifactError):
    fatal = False


class TeacherError(PotstillError, ConnectionError):
    pass


class TransientTeacherError(TeacherError):
    fatal = False


class PermanentTeacherError(TeacherError):
    pass


class InboxError(PotstillError, OSError):
    pass


class OrchestratorError(PotstillError, ConnectionError):
    fatal = False


class SubprocessError(PotstillError, RuntimeError):
    fatal = False


class ChildRunError(SubprocessError):
    fatal = True


class ReleaseError(PotstillError, RuntimeError):
    pass
