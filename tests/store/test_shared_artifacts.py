"""Artefacts in a bucket: two homes are two machines; what a killed upload, a damage or a rival leaves."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.artifacts import MANIFEST, StageKey, load_artifact, store_at
from potstill.errors import ArtifactDamagedError, ArtifactMissingError
from tests.s3_server import Manner, S3Proxy
from tests.store.killing import KEY, killer, produce

pytestmark = pytest.mark.flow


@pytest.fixture
def here(bucket, tmp_path):
    return store_at(tmp_path / "here" / "home")


@pytest.fixture
def there(bucket, tmp_path):
    return store_at(tmp_path / "there" / "home")


@pytest.fixture
def ref(here):
    here.root.mkdir(parents=True)
    return here.build(KEY, "Rows", produce(here.root))


def forbidden(directory: Path) -> int:
    raise AssertionError("another machine has made it: nothing is to be produced")


def calls(store) -> int:
    return len((store.root.parent / "calls").read_text().splitlines())


def test_another_machine_finds_what_was_built_and_brings_it_whole(here, there, ref, bucket):
    assert set(bucket.names("artifacts")) == {
        f"{ref.uri}/{name}" for name in (MANIFEST, "summary.json", "inner/rows.txt")
    }
    assert there.build(KEY, "Rows", forbidden) == ref == there.lookup(KEY)
    assert load_artifact(there.path(ref), "Rows", expected_digest=ref.digest).num_rows == 3
    assert (there.path(ref) / "inner" / "rows.txt").read_text() == "rows"
    assert there.manifest(ref) == here.manifest(ref)
    assert not list((there.root / "tmp").iterdir())


def test_a_reference_is_enough_to_bring_it(there, ref):
    assert (there.path(ref) / "summary.json").read_text() == "{}"
    found = there.find("Rows", ref.digest)
    assert found is not None
    assert found.num_rows == 3
    assert there.find("Rows", "d" * 64) is None


def test_machines_have_the_same_mirror_key_and_see_it_change_together(here, there, ref, bucket):
    before = there.mirror_key(KEY)
    assert here.mirror_key(KEY) == before
    bucket.write(f"{ref.uri}/inner/rows.txt", b"damaged")
    (here.root / ref.uri / "inner" / "rows.txt").unlink()
    after = here.mirror_key(KEY)
    assert after != before
    here.build(KEY, "Rows", produce(here.root))
    assert there.mirror_key(KEY) == after == here.mirror_key(KEY)


def test_without_its_manifest_in_the_bucket_it_does_not_exist_though_a_copy_is_here(here, there, ref, bucket):
    """Who removes an artefact from the bucket means it: a copy on some machine does not bring it back."""
    bucket._fs.rm_file(f"{bucket.address.removeprefix('s3://')}/{ref.uri}/{MANIFEST}")
    assert here.lookup(KEY) is None
    with pytest.raises(ArtifactMissingError, match=f"does not hold Rows {ref.digest[:12]}: run the recipe again"):
        there.path(ref)
    assert here.build(KEY, "Rows", produce(here.root)) == ref
    assert calls(here) == 2
    assert there.lookup(KEY) == ref


@pytest.mark.parametrize("harm", ["changed", "file gone", "manifest gone", "manifest cut", "directory gone"])
def test_a_damaged_copy_is_fetched_again(there, ref, harm):
    directory = there.path(ref)
    file = directory / "inner" / "rows.txt"
    {
        "changed": lambda: file.write_text("rowz"),
        "file gone": file.unlink,
        "manifest gone": (directory / MANIFEST).unlink,
        "manifest cut": lambda: (directory / MANIFEST).write_text("{"),
        "directory gone": lambda: shutil.rmtree(directory),
    }[harm]()
    assert there.lookup(KEY) == ref
    assert file.read_text() == "rows"
    assert load_artifact(directory, "Rows", expected_digest=ref.digest)


def test_a_copy_that_was_damaged_since_is_noticed_by_the_next_process(there, ref, bucket):
    (there.path(ref) / "inner" / "rows.txt").write_text("rowz")
    code = (
        "import sys\nfrom pathlib import Path\nfrom potstill.artifacts import ArtifactRef, store_at\n"
        "store, ref = store_at(Path(sys.argv[1])), ArtifactRef.model_validate_json(sys.argv[2])\n"
        "print((store.path(ref) / 'inner' / 'rows.txt').read_text())"
    )
    command = [sys.executable, "-c", code, str(there.root), ref.model_dump_json()]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "rows"


@pytest.mark.parametrize("harm", ["changed", "file gone"])
def test_what_is_damaged_in_the_bucket_is_refused_and_the_next_build_mends_it(here, there, ref, bucket, harm):
    place = f"{bucket.address.removeprefix('s3://')}/{ref.uri}/inner/rows.txt"
    bucket._fs.rm_file(place) if harm == "file gone" else bucket.write(f"{ref.uri}/inner/rows.txt", b"rowz")
    with pytest.raises(ArtifactDamagedError, match=rf"{bucket.address}.*inner/rows\.txt differ from manifest\.json"):
        there.path(ref)
    assert there.lookup(KEY) is None
    assert not (there.root / ref.uri).exists()
    there.root.mkdir(parents=True, exist_ok=True)
    assert there.build(KEY, "Rows", produce(there.root)) == ref
    assert bucket.read(f"{ref.uri}/inner/rows.txt").content == b"rows"


def test_a_manifest_that_contradicts_itself_is_refused(there, ref, bucket):
    manifest = json.loads(bucket.read(f"{ref.uri}/{MANIFEST}").content)
    manifest["files"]["inner/rows.txt"] = "0" * 64
    bucket.write(f"{ref.uri}/{MANIFEST}", json.dumps(manifest).encode())
    with pytest.raises(ArtifactDamagedError, match="contradicts itself"):
        there.path(ref)


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "inner/../../evil"])
def test_a_manifest_cannot_write_outside_of_its_directory(there, ref, bucket, name, tmp_path):
    from potstill.fingerprint import fingerprint

    manifest = json.loads(bucket.read(f"{ref.uri}/{MANIFEST}").content)
    manifest["files"] = {name: "0" * 64}
    manifest["digest"] = fingerprint({"kind": "Rows", "files": manifest["files"]})
    bucket.write(f"{ref.uri}/{MANIFEST}", json.dumps(manifest).encode())
    with pytest.raises(ArtifactDamagedError, match="lies outside of it"):
        there.path(ref.model_copy(update={"digest": manifest["digest"]}))
    assert not list(tmp_path.rglob("evil"))


def test_a_store_that_goes_away_in_the_middle_is_said_and_the_same_again_only_uploads(
    bucket, s3_server, monkeypatch, tmp_path
):
    from potstill.errors import StoreUnreachableError
    from potstill.object_store import ObjectStore

    with S3Proxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr("potstill.object_store.SETTINGS", {"retries": {"total_max_attempts": 1}})
        from potstill.artifacts import ArtifactStore

        store = ArtifactStore(tmp_path / "home", ObjectStore(bucket.address))

        def work(directory: Path) -> int:
            proxy.manner = Manner.AWAY
            return produce(store.root)(directory)

        with pytest.raises(StoreUnreachableError, match="run the same again"):
            store.build(KEY, "Rows", work)
        proxy.manner = Manner.OPEN
        ref = store.build(KEY, "Rows", forbidden)
        assert store.lookup(KEY) == ref


@pytest.mark.drill
def test_an_upload_that_is_killed_at_any_step_has_uploaded_nothing_and_the_same_again_completes(bucket, tmp_path):
    outcomes = kill_uploads(bucket, tmp_path, itertools.count(1))
    assert len(outcomes) == 9, "two files, the manifest and the key, before and after each, and a whole run"
    assert outcomes == [False] * 7 + [True] * 2, "it is there from the moment that the bucket has its key"


def test_an_upload_that_is_killed_in_the_middle_before_its_key_and_after_it_completes(bucket, tmp_path):
    assert kill_uploads(bucket, tmp_path, [3, 7, 8]) == [False, False, True]


def kill_uploads(bucket, tmp_path, steps) -> list[bool]:
    """Whether another machine found the artefact, by the step at which its builder was killed."""
    outcomes = []
    with killer() as kill:
        for step in steps:
            address = f"{bucket.address}/{step}"
            here, there = (tmp_path / f"{name}{step}" / "home" for name in ("here", "there"))
            here.parent.mkdir()
            status = kill.run("build", here, address, step)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("POTSTILL_STORE", address)
                other, own = store_at(there), store_at(here)
                found = other.lookup(KEY)
                ref = own.build(KEY, "Rows", forbidden)
                assert found in {None, ref}
                assert other.lookup(KEY) == ref
                assert load_artifact(other.path(ref), "Rows", expected_digest=ref.digest)
                assert calls(own) == 1, "what was built before the upload is not built again"
                assert not list((own.root / "keys").rglob("*.json"))
            outcomes.append(found is not None)
            if status == 0:
                break
            assert status == -signal.SIGKILL
    return outcomes


RIVAL = """
import os, sys, time
from pathlib import Path
from potstill.artifacts import StageKey, store_at

def produce(directory):
    (Path(sys.argv[2]) / str(os.getpid())).touch()
    while len(list(Path(sys.argv[2]).iterdir())) < 2:
        time.sleep(0.01)
    (directory / "rows.txt").write_text(f"by {os.getpid()}")
    return 1

store = store_at(Path(sys.argv[1]))
ref = store.build(StageKey("stage", 1, "a" * 64), "Rows", produce)
print(ref.digest, (store.path(ref) / "rows.txt").read_text())
"""


def test_two_machines_that_build_one_key_both_work_and_agree_on_what_the_first_one_made(here, bucket, tmp_path):
    (tmp_path / "at-work").mkdir()
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, str(tmp_path / name), str(tmp_path / "at-work")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    said = [rival.communicate(timeout=60)[0] for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0]
    assert said[0] == said[1]
    ref = here.lookup(StageKey("stage", 1, "a" * 64))
    assert ref is not None
    assert said[0].startswith(ref.digest)
