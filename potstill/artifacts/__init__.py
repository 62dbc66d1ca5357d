"""The store of what stages made: content-addressed directories, and the keys that say which stage made which."""

from potstill.artifacts.directory import (
    MANIFEST,
    SCHEMA_VERSION,
    ArtifactRef,
    Manifest,
    StageKey,
    digest_files,
    load_artifact,
    read_manifest,
)
from potstill.artifacts.disk import sync, write_atomically
from potstill.artifacts.store import ArtifactStore, open_store, store_at

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "ArtifactRef",
    "ArtifactStore",
    "Manifest",
    "StageKey",
    "digest_files",
    "load_artifact",
    "open_store",
    "read_manifest",
    "store_at",
    "sync",
    "write_atomically",
]
