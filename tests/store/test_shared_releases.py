"""Releases in a bucket: a killed release, rival moves, damage; two homes are two machines."""

import itertools
import multiprocessing
import shutil
import signal
from pathlib import Path

import pytest

from potstill.errors import ArtifactDamagedError, ReleaseError
from potstill.object_store import ObjectStore
from potstill.promotions import Aliases, Promotion, came_true
from potstill.release import aliases, all_recipes, releases, resolve, rollback, verify, version_directory
from potstill.shelves import BucketShelf, shelf_at
from tests.s3_server import Manner, S3Proxy
from tests.store.killing import killer
from tests.test_release import release, student

pytestmark = pytest.mark.flow


@pytest.fixture
def here(bucket, tmp_path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def there(bucket, tmp_path) -> Path:
    return tmp_path / "there"


def moves(home: Path) -> list[Promotion]:
    return shelf_at(home / "releases" / "demo").state().lines


def location(bucket: ObjectStore, name: str) -> str:
    return f"{bucket.address.removeprefix('s3://')}/{name}"


def test_what_one_machine_releases_another_resolves_and_has_whole(here, there, bucket) -> None:
    first, second = release(here, 1), release(here, 2)
    assert all_recipes(there) == ["demo"]
    assert aliases(there, "demo") == Aliases(champion=second.version, previous=first.version)
    assert [version.version for version in releases(there, "demo")] == [first.version, second.version]
    version = resolve(there, "demo")
    assert not (there / "releases").exists(), "to know a version, nothing is downloaded"
    directory = version_directory(there, version)
    assert directory == there / "releases" / "demo" / "versions" / second.version
    assert verify(directory) == version
    assert {str(path.relative_to(directory)) for path in directory.rglob("*.*")} == {*version.files, "version.json"}
    assert not list((there / "releases" / "demo" / "tmp").iterdir())
    assert rollback(there, "demo") == aliases(here, "demo") == Aliases(champion=first.version, previous=second.version)
    assert release(there, 2).alias == "previous", "the other machine's decision is spent here too"


def test_a_home_holds_nothing_that_could_be_out_of_date(here, there) -> None:
    release(here, 1)
    release(there, 2)
    for home in (here, there):
        assert not (home / "releases" / "demo" / "aliases.json").exists()
        assert not (home / "releases" / "demo" / "promotions.jsonl").exists()


@pytest.mark.drill
def test_a_release_that_is_killed_at_any_step_leaves_the_old_champion_or_the_whole_new_one(bucket, tmp_path) -> None:
    seen = kill_releases(bucket, tmp_path, itertools.count(1))
    assert len(seen) > 15, "six files, the probe, the aliases and the log, before and after each"


def test_a_release_that_is_killed_before_its_record_and_after_its_move_completes(bucket, tmp_path) -> None:
    seen = kill_releases(bucket, tmp_path, [11, 16])
    assert [found.previous is not None for found in seen] == [False, True]


def kill_releases(bucket, tmp_path, steps) -> list[Aliases]:
    seen = []
    with killer() as kill:
        for step in steps:
            address = f"{bucket.address}/{step}"
            here, there = tmp_path / f"here{step}", tmp_path / f"there{step}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("POTSTILL_STORE", address)
                first = release(here, 1)
                status = kill.run("release", here, address, step)
                seen.append(aliases(there, "demo"))
                champion = resolve(there, "demo")
                assert verify(version_directory(there, champion)) == champion
                second = release(here, 2)
                new = Aliases(champion=second.version, previous=first.version)
                assert seen[-1] in {Aliases(champion=first.version), new}
                assert aliases(there, "demo") == new
                assert [verify(version_directory(there, version)) for version in releases(there, "demo")]
                log = moves(there)
                assert [line.to_version for line in log] == [first.version, second.version]
                assert came_true(log, second.version) == log
            if status == 0:
                break
            assert status == -signal.SIGKILL
    assert sorted(seen, key=lambda found: found.previous is not None) == seen
    return seen


@pytest.mark.drill
def test_a_rollback_that_is_killed_at_any_step_is_made_and_logged_or_neither(bucket, tmp_path) -> None:
    with killer() as kill:
        for step in itertools.count(1):
            address = f"{bucket.address}/{step}"
            home = tmp_path / f"home{step}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("POTSTILL_STORE", address)
                first, second = release(home, 1), release(home, 2)
                status = kill.run("rollback", home, address, step)
                now, log = aliases(home, "demo"), moves(home)
                is_made = now == Aliases(champion=first.version, previous=second.version)
                assert is_made or now == Aliases(champion=second.version, previous=first.version)
                assert [line.what for line in log] == ["release", "release", *(["rollback"] * is_made)]
                rollback(home, "demo")
                assert came_true(moves(home), aliases(home, "demo").champion) == moves(home)
                assert len(moves(home)) == len(log) + 1
            if status == 0:
                break


def _move(home: Path, seeds: list[int], barrier) -> None:
    barrier.wait()
    for seed in seeds:
        release(home, seed)
        rollback(home, "demo")


def test_two_machines_that_move_aliases_at_once_lose_no_move(bucket, tmp_path) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    release(homes[0], 0)
    release(homes[0], 1)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    seeds = ([2, 3, 4, 5], [6, 7, 8, 9])
    both = [context.Process(target=_move, args=(home, mine, barrier)) for home, mine in zip(homes, seeds, strict=True)]
    for process in both:
        process.start()
    for process in both:
        process.join(270)
    assert [process.exitcode for process in both] == [0, 0]
    log, now = moves(homes[0]), aliases(homes[0], "demo")
    assert [line.what for line in log].count("release") == 10
    assert [line.what for line in log].count("rollback") == 8
    assert len({line.to_version for line in log if line.what == "release"}) == 10
    assert came_true(log, now.champion) == log, "each move starts from what the one before it made"
    assert bucket.read("releases/demo/promotions.jsonl").content.count(b"\n") == 18


def test_two_machines_that_release_one_student_at_once_agree_on_one_version(here, there, bucket, monkeypatch) -> None:
    """The second one comes after the first one's look, and before its record: it is then its record that counts."""
    look = BucketShelf.holds

    def meanwhile(shelf: BucketShelf, version: str) -> bool:
        found = look(shelf, version)
        if shelf.directory.parents[1] == here:
            monkeypatch.setattr(BucketShelf, "holds", look)
            release(there, 1)
        return found

    monkeypatch.setattr(BucketShelf, "holds", meanwhile)
    release(here, 1)
    version = resolve(here, "demo")
    assert verify(version_directory(here, version)) == verify(version_directory(there, version)) == version
    assert len(moves(here)) == 1


def test_a_damaged_copy_of_a_version_is_fetched_again(here, there) -> None:
    release(here, 1)
    version = resolve(there, "demo")
    file = version_directory(there, version) / "adapter" / "chat_template.jinja"
    file.chmod(0o644)
    file.write_text("other")
    assert verify(version_directory(there, version)) == version
    file.unlink()
    assert verify(version_directory(there, version)) == version
    shutil.rmtree(there / "releases")
    assert verify(version_directory(there, version)) == version


def test_a_version_that_is_damaged_in_the_bucket_is_refused(here, there, bucket) -> None:
    made = release(here, 1)
    place = f"releases/demo/versions/{made.version}"
    bucket.write(f"{place}/adapter/chat_template.jinja", b"other")
    with pytest.raises(ArtifactDamagedError, match=rf"{bucket.address}.*chat_template\.jinja differ"):
        version_directory(there, resolve(there, "demo"))
    assert not (there / "releases" / "demo" / "versions").exists()
    bucket.write(f"{place}/version.json", b"{}")
    with pytest.raises(ArtifactDamagedError, match=r"version\.json cannot be read"):
        resolve(there, "demo")


def test_damaged_aliases_are_named(here, bucket) -> None:
    release(here, 1)
    bucket.write("releases/demo/aliases.json", b"{")
    with pytest.raises(ArtifactDamagedError, match=rf"{bucket.address}/releases/demo/aliases\.json cannot be read"):
        resolve(here, "demo")


def test_a_line_that_the_log_lacks_is_taken_from_the_aliases(here, there, bucket) -> None:
    """As after a kill between the move and the log."""
    first, second = release(here, 1), release(here, 2)
    log = bucket.read("releases/demo/promotions.jsonl").content
    bucket.write("releases/demo/promotions.jsonl", log.splitlines(keepends=True)[0])
    assert [line.to_version for line in moves(there)] == [first.version, second.version]
    rollback(there, "demo")
    content = bucket.read("releases/demo/promotions.jsonl").content
    assert content.startswith(log)
    assert content.count(b"\n") == 3


def test_a_server_without_conditional_writes_releases_nothing(here, bucket, s3_server, monkeypatch) -> None:
    with S3Proxy(s3_server) as proxy:
        proxy.manner = Manner.DEAF
        deaf = ObjectStore(bucket.address)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        deaf = ObjectStore(bucket.address)
        monkeypatch.setattr("potstill.shelves.open_remote", lambda: deaf)
        with pytest.raises(ValueError, match="ignores IfNoneMatch"):
            release(here, 1)
    assert aliases(here, "demo") == Aliases()


def test_rollback_of_what_was_never_released_says_what_there_is(here, there) -> None:
    student(there, 1)
    with pytest.raises(ReleaseError, match="nothing is released yet"):
        rollback(there, "demo")
    made = release(here, 1)
    with pytest.raises(ReleaseError, match=f"released: demo@{made.version}"):
        rollback(there, "other")
