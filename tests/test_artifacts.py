"""The store, with real files, real processes and real damage."""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from potstill.artifacts import MANIFEST, ArtifactRef, ArtifactStore, StageKey, load_artifact, store_at, write_atomically
from potstill.errors import ArtifactDamagedError, ArtifactMissingError
from potstill.fingerprint import code_revision
from potstill.records import TeacherTerms

KEY = StageKey("stage", 1, "a" * 64)
OTHER_KEY = StageKey("stage", 1, "b" * 64)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "home")


def writing(text="rows", name="rows.txt"):
    """A `produce` that writes one file and counts its calls."""

    def produce(directory: Path) -> int:
        produce.calls += 1
        (directory / "inner").mkdir()
        (directory / "inner" / name).write_text(text)
        return 3

    produce.calls = 0
    return produce


def forbidden(directory: Path) -> int:
    raise AssertionError("the store holds it: nothing is to be produced")


class TestBuild:
    @pytest.fixture
    def store(self, store_kind, tmp_path):
        return store_at(tmp_path / "home")

    def test_a_built_artefact_is_found_again_and_not_produced_twice(self, store):
        produce = writing()
        ref = store.build(KEY, "Rows", produce)
        assert (ref.kind, ref.num_rows, ref.uri) == ("Rows", 3, f"artifacts/Rows/{ref.digest[:12]}")
        assert store.build(KEY, "Rows", produce) == ref
        assert produce.calls == 1
        assert store.lookup(KEY) == ref
        assert (store.path(ref) / "inner" / "rows.txt").read_text() == "rows"

    def test_the_manifest_says_what_it_is_and_of_what_it_was_made(self, store):
        source = store.build(OTHER_KEY, "Source", writing("source"))
        ref = store.build(KEY, "Rows", writing(), inputs=[source], recipe_fingerprint="f" * 64)
        manifest = store.manifest(ref)
        assert (manifest.digest, manifest.num_rows, manifest.key) == (ref.digest, 3, str(KEY))
        assert (manifest.inputs, manifest.recipe_fingerprint) == ((source.digest,), "f" * 64)
        assert list(manifest.files) == ["inner/rows.txt"]

    def test_the_terms_of_all_teachers_go_on_into_everything_that_is_made_of_their_answers(self, store):
        ours, theirs = (
            TeacherTerms(teacher=name, host="llm.example", kind="unknown", link="", attested=f"{name} may")
            for name in ("ours", "theirs")
        )
        prompts = store.build(StageKey("curate", 1, "c" * 64), "Prompts", writing("prompts"))
        first = store.build(KEY, "Answers", writing("first"), inputs=[prompts], teacher_terms=[ours])
        second = store.build(OTHER_KEY, "Answers", writing("second"), inputs=[prompts], teacher_terms=[theirs, ours])
        both = store.build(StageKey("mix", 1, "d" * 64), "Dataset", writing("both"), inputs=[prompts, first, second])
        student = store.build(StageKey("train", 1, "e" * 64), "Student", writing("student"), inputs=[both])
        assert store.manifest(prompts).teacher_terms == ()
        assert store.manifest(first).teacher_terms == (ours,)
        assert store.manifest(student).teacher_terms == (ours, theirs)

    def test_a_manifest_from_before_terms_were_kept_is_read(self, store):
        path = store.path(store.build(KEY, "Rows", writing())) / MANIFEST
        old = json.loads(path.read_text())
        del old["teacher_terms"]
        path.write_text(json.dumps(old))
        assert store.lookup(KEY) is not None

    def test_the_manifest_does_not_exist_while_the_files_are_written(self, store):
        seen = []

        def produce(directory: Path) -> int:
            (directory / "rows.txt").write_text("rows")
            seen.extend(path.name for path in store.root.rglob("*") if path.is_file())
            return 1

        store.build(KEY, "Rows", produce)
        assert "rows.txt" in seen
        assert MANIFEST not in seen

    def test_an_exception_leaves_nothing_behind_and_the_next_build_works(self, store):
        def produce(directory: Path) -> int:
            (directory / "half.txt").write_text("half")
            raise RuntimeError("no space left")

        with pytest.raises(RuntimeError, match="no space left"):
            store.build(KEY, "Rows", produce)
        assert store.lookup(KEY) is None
        assert not list(store.root.rglob("half.txt"))
        assert not (store.root / "artifacts").exists()
        assert store.build(KEY, "Rows", writing()).num_rows == 3

    def test_what_a_killed_build_left_does_not_get_into_the_next_one(self, store):
        leftover = store.root / "tmp" / f"{KEY.stage}-{KEY.digest[:24]}"
        leftover.mkdir(parents=True)
        (leftover / "stale.txt").write_text("stale")
        ref = store.build(KEY, "Rows", writing())
        assert not (store.path(ref) / "stale.txt").exists()

    def test_the_same_bytes_have_the_same_digest_under_any_key_and_in_any_store(self, store, tmp_path):
        first = store.build(KEY, "Rows", writing())
        assert store.build(OTHER_KEY, "Rows", writing()) == first
        assert ArtifactStore(tmp_path / "elsewhere").build(KEY, "Rows", writing()) == first

    @pytest.mark.parametrize(
        ("kind", "produce"),
        [("Rows", writing("other rows")), ("Rows", writing(name="other.txt")), ("Other", writing())],
        ids=["other bytes", "other name", "other kind"],
    )
    def test_another_content_name_or_kind_has_another_digest(self, store, kind, produce):
        assert store.build(KEY, "Rows", writing()).digest != store.build(OTHER_KEY, kind, produce).digest

    @pytest.mark.parametrize(
        "key",
        [KEY._replace(stage="other"), KEY._replace(version=2), KEY._replace(digest="c" * 64)],
        ids=["stage", "VERSION", "digest"],
    )
    def test_every_part_of_the_key_counts(self, store, key):
        store.build(KEY, "Rows", writing())
        assert store.lookup(key) is None


class TestDamage:
    @pytest.fixture
    def ref(self, store) -> ArtifactRef:
        return store.build(KEY, "Rows", writing())

    def damage(self, store, ref, how):
        directory = store.root / ref.uri
        file = directory / "inner" / "rows.txt"
        {
            "changed": lambda: file.write_text("rowz"),
            "truncated": lambda: file.write_text(""),
            "file gone": file.unlink,
            "manifest gone": (directory / MANIFEST).unlink,
            "manifest cut": lambda: (directory / MANIFEST).write_text("{"),
            "manifest forged": lambda: self.forge(directory),
            "manifest a directory": lambda: self.replace_by_directory(directory / MANIFEST),
            "file a directory": lambda: self.replace_by_directory(file),
            "directory gone": lambda: shutil.rmtree(directory),
        }[how]()

    @staticmethod
    def forge(directory):
        """Other bytes, and a manifest whose list of files agrees with them."""
        (directory / "inner" / "rows.txt").write_text("forged")
        manifest = json.loads((directory / MANIFEST).read_text())
        manifest["files"]["inner/rows.txt"] = hashlib.sha256(b"forged").hexdigest()
        (directory / MANIFEST).write_text(json.dumps(manifest))

    @staticmethod
    def replace_by_directory(path):
        path.unlink()
        path.mkdir()

    ALL = (
        *("changed", "truncated", "file gone", "file a directory", "directory gone"),
        *("manifest gone", "manifest cut", "manifest forged", "manifest a directory"),
    )

    @pytest.mark.parametrize("how", ALL)
    def test_it_is_noticed_and_mended_by_the_next_build(self, store, ref, how):
        self.damage(store, ref, how)
        assert store.lookup(KEY) is None
        produce = writing()
        assert store.build(KEY, "Rows", produce) == ref
        assert produce.calls == 1
        assert store.lookup(KEY) == ref

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ("changed", r"inner/rows\.txt differ from manifest\.json: build it again"),
            ("truncated", r"inner/rows\.txt differ"),
            ("file gone", r"inner/rows\.txt differ"),
            ("file a directory", r"inner/rows\.txt differ"),
            ("manifest cut", r"manifest\.json cannot be read"),
            ("manifest forged", r"manifest\.json contradicts itself"),
            ("manifest a directory", r"manifest\.json is a directory"),
        ],
    )
    def test_loading_a_damaged_artefact_says_what_is_wrong(self, store, ref, how, said):
        self.damage(store, ref, how)
        with pytest.raises(ArtifactDamagedError, match=said):
            load_artifact(store.root / ref.uri, "Rows")

    def test_a_file_beside_it_is_no_damage(self, store, ref):
        """A user keeps his own files in a directory that a command exported to."""
        (store.root / ref.uri / "notes.txt").write_text("mine")
        assert store.lookup(KEY) == ref

    @pytest.mark.parametrize("how", ["manifest gone", "directory gone"])
    def test_without_a_manifest_it_does_not_exist(self, store, ref, how):
        self.damage(store, ref, how)
        with pytest.raises(ArtifactMissingError, match=r"no manifest\.json"):
            load_artifact(store.root / ref.uri, "Rows")
        with pytest.raises(ArtifactMissingError):
            store.path(ref)

    def test_another_kind_or_another_digest_is_missing(self, store, ref):
        directory = store.root / ref.uri
        assert load_artifact(directory, "Rows", expected_digest=ref.digest).digest == ref.digest
        with pytest.raises(ArtifactMissingError, match="is a Rows artefact, not a Other"):
            load_artifact(directory, "Other")
        with pytest.raises(ArtifactMissingError, match=r"not dddddddddddd"):
            load_artifact(directory, "Rows", expected_digest="d" * 64)

    def test_a_reference_to_another_content_is_refused(self, store, ref):
        with pytest.raises(ArtifactMissingError, match="run the recipe again"):
            store.path(ref.model_copy(update={"digest": "d" * 64}))

    @pytest.mark.parametrize("text", ["", "{", '{"ref": 1}'])
    def test_an_unreadable_key_is_no_key(self, store, ref, text):
        next((store.root / "keys").rglob("a*.json")).write_text(text)
        assert store.lookup(KEY) is None
        assert store.build(KEY, "Rows", writing()) == ref


class TestMirrorKey:
    """Prefect's cache may remember a reference under this key only as long as the store honours it."""

    def test_it_is_the_same_before_and_after_the_first_build_and_on_every_question(self, store):
        before = store.mirror_key(KEY)
        store.build(KEY, "Rows", writing())
        assert store.mirror_key(KEY) == before == ArtifactStore(store.root).mirror_key(KEY)
        assert before.startswith(f"{KEY}-")

    def test_it_does_not_change_when_something_else_is_built(self, store):
        store.build(KEY, "Rows", writing())
        before = store.mirror_key(KEY)
        store.build(OTHER_KEY, "Rows", writing("other"))
        assert store.mirror_key(KEY) == before
        assert store.mirror_key(OTHER_KEY) != before

    @pytest.mark.parametrize("how", TestDamage.ALL)
    def test_a_lost_or_damaged_artefact_changes_it_once_and_for_good(self, store, how):
        ref = store.build(KEY, "Rows", writing())
        first = store.mirror_key(KEY)
        TestDamage().damage(store, ref, how)
        second = store.mirror_key(KEY)
        assert second != first
        store.build(KEY, "Rows", writing())
        assert store.mirror_key(KEY) == second
        TestDamage().damage(store, ref, how)
        assert store.mirror_key(KEY) not in {first, second}

    def test_lost_keys_change_it(self, store):
        store.build(KEY, "Rows", writing())
        before = store.mirror_key(KEY)
        shutil.rmtree(store.root / "keys")
        assert store.mirror_key(KEY) != before

    def test_a_lost_record_of_one_key_changes_it_though_its_artefact_is_whole(self, store):
        store.build(KEY, "Rows", writing())
        before = store.mirror_key(KEY)
        (store.root / "keys" / f"{KEY}.json").unlink()
        after = store.mirror_key(KEY)
        assert after != before
        assert store.lookup(KEY) is None
        store.build(KEY, "Rows", writing())
        assert store.mirror_key(KEY) == after

    def test_another_store_has_another(self, store, tmp_path):
        assert store.mirror_key(KEY) != ArtifactStore(tmp_path / "other").mirror_key(KEY)

    def test_another_store_at_the_same_place_has_another(self, store):
        before = store.mirror_key(KEY)
        shutil.rmtree(store.root)
        assert store.mirror_key(KEY) != before


BUILDER = """
import os, sys, time
from pathlib import Path
from potstill.artifacts import ArtifactStore, StageKey

def produce(directory):
    with open(sys.argv[2], "a") as calls:
        calls.write(f"{os.getpid()}\\n")
    time.sleep(0.2)
    (directory / "rows.txt").write_text("rows")
    return 1

print(ArtifactStore(Path(sys.argv[1])).build(StageKey("stage", 1, sys.argv[3] * 64), "Rows", produce).digest)
"""


def build_in_two_processes(store, calls, keys):
    builders = [
        subprocess.Popen([sys.executable, "-c", BUILDER, store.root, calls, key], stdout=subprocess.PIPE, text=True)
        for key in keys
    ]
    digests = [builder.communicate(timeout=30)[0].strip() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    return digests


@pytest.mark.flow
class TestTwoProcesses:
    def test_that_build_one_key_produce_it_once(self, store, tmp_path):
        digests = build_in_two_processes(store, tmp_path / "calls", "aa")
        assert len((tmp_path / "calls").read_text().splitlines()) == 1
        ref = store.lookup(KEY)
        assert ref is not None
        assert digests == [ref.digest] * 2

    def test_that_make_the_same_bytes_under_two_keys_share_the_artefact(self, store, tmp_path):
        digests = build_in_two_processes(store, tmp_path / "calls", "ab")
        assert len((tmp_path / "calls").read_text().splitlines()) == 2
        assert digests[0] == digests[1]
        assert store.lookup(KEY) == store.lookup(OTHER_KEY) is not None


def in_child(work) -> int:
    """Run `work` in a fork of this process and return how it ended: 0, or 9 where it was cut off."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - a fork must never go on as a second pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crash_at(step: int) -> None:
    """End this process, as a power cut would, just before its `step`-th change of the file system."""
    count = 0

    def watch(event: str, details: tuple) -> None:
        nonlocal count
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}:
            count += 1
            if count == step:
                os._exit(9)

    sys.addaudithook(watch)


@pytest.mark.flow
class TestCrash:
    """Between any two changes of the file system, the process is gone; what is left is nothing or the whole."""

    @pytest.mark.parametrize("damaged", [False, True], ids=["a first build", "a build after damage"])
    def test_it_leaves_nothing_or_the_whole_and_the_next_build_mends_it(self, tmp_path, damaged):
        code_revision()  # asks git once, in this process
        outcomes = []
        for step in itertools.count(1):
            store = ArtifactStore(tmp_path / f"home{step}")
            if damaged:
                TestDamage().damage(store, store.build(KEY, "Rows", writing()), "changed")

            def work(store=store, step=step):
                crash_at(step)
                store.build(KEY, "Rows", writing())

            status = in_child(work)
            assert status in {0, 9}
            found = store.lookup(KEY)
            for manifest in (store.root / "artifacts").rglob(MANIFEST):
                if not damaged or found is not None:
                    assert load_artifact(manifest.parent, "Rows").num_rows == 3
            ref = store.build(KEY, "Rows", forbidden if found is not None else writing())
            assert found in {None, ref}
            assert store.lookup(KEY) == ref
            assert sorted(path.name for path in store.path(ref).rglob("*.*")) == [MANIFEST, "rows.txt"]
            outcomes.append(found is not None)
            if status == 0:
                break
        assert len(outcomes) > 8, "the steps were not seen"
        assert outcomes == sorted(outcomes)
        assert outcomes[-1]

    def test_of_an_export_leaves_no_half_copy_that_looks_whole(self, store, tmp_path):
        old, new = store.build(OTHER_KEY, "Rows", writing("old")), store.build(KEY, "Rows", writing("new"))
        for step in itertools.count(1):
            out = tmp_path / f"out{step}"
            store.export(old, out)

            def work(out=out, step=step):
                crash_at(step)
                store.export(new, out)

            status = in_child(work)
            if (out / MANIFEST).exists():
                assert load_artifact(out, "Rows").digest in {old.digest, new.digest}
            store.export(new, out)
            assert load_artifact(out, "Rows").digest == new.digest
            if status == 0:
                break
        assert step > 3, "the steps were not seen"


class TestExport:
    @pytest.fixture
    def store(self, store_kind, tmp_path):
        return store_at(tmp_path / "home")

    def test_the_copy_is_a_whole_artefact(self, store, tmp_path):
        ref = store.build(KEY, "Rows", writing())
        store.export(ref, tmp_path / "out")
        loaded = load_artifact(tmp_path / "out", "Rows", expected_digest=ref.digest)
        assert (loaded.num_rows, loaded.uri) == (3, str(tmp_path / "out"))

    def test_a_copy_over_an_older_one_is_whole_too(self, store, tmp_path):
        old, new = store.build(KEY, "Rows", writing("old")), store.build(OTHER_KEY, "Rows", writing("new"))
        for ref in (old, new):
            store.export(ref, tmp_path / "out")
        assert load_artifact(tmp_path / "out", "Rows").digest == new.digest

    def test_a_reference_outside_the_store_is_read_where_it_lies(self, store, tmp_path):
        ref = store.build(KEY, "Rows", writing())
        store.export(ref, tmp_path / "out")
        outside = load_artifact(tmp_path / "out", "Rows")
        assert ArtifactStore(tmp_path / "elsewhere").path(outside) == tmp_path / "out"


class TestWriteAtomically:
    def test_it_replaces_the_text_whole_and_leaves_no_other_file(self, tmp_path):
        path = tmp_path / "new" / "status.json"
        for text in ("long " * 1000, "short é"):
            write_atomically(path, text)
            assert path.read_text(encoding="utf-8") == text
        assert [file.name for file in path.parent.iterdir()] == ["status.json"]

    def test_a_failed_write_keeps_the_old_text(self, tmp_path):
        path = tmp_path / "status.json"
        write_atomically(path, json.dumps("old"))
        with pytest.raises(UnicodeEncodeError):
            write_atomically(path, "\ud800")
        assert path.read_text() == '"old"'
