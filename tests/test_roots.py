"""What a confined run may read: nothing whose path, symlinks resolved, lies outside of the roots, whether it exists or not."""

import json
import os
import re
from pathlib import Path

import pytest

from potstill.artifacts import ArtifactStore
from potstill.curation.curate import curate, stage_key
from potstill.curation.inputs import find_inputs
from potstill.errors import DataError, NotAuthorisedError, UsageError
from potstill.preflight import check
from potstill.recipe import Curation, Recipe, Student
from potstill.roots import check_path, check_pattern, check_url, is_confined, open_inside, read_roots
from potstill.student.base import find_base, resolve_base

FIELD = "curation.inputs"
REFUSED = "lies below no root of POTSTILL_DATA_ROOTS"
LINE = json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root `data`, something foreign beside it, and a home."""
    for name in ("data", "foreign", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "own.jsonl").write_text(LINE)
    (tmp_path / "foreign" / "secret.jsonl").write_text(LINE)
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POTSTILL_DATA_ROOTS", str(tmp_path / "data"))
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(pattern: str) -> list[Path]:
    return [Path(file.name) for file in find_inputs((pattern,))]


class TestInputs:
    def test_what_lies_below_a_root_is_found(self, place: Path):
        assert paths(f"{place}/data/*.jsonl") == [place / "data" / "own.jsonl"]
        assert paths("data/own.jsonl") == [Path("data/own.jsonl")]

    @pytest.mark.parametrize(
        "pattern",
        [
            "{place}/foreign/secret.jsonl",
            "{place}/foreign/no-such-file",
            "{place}/data/../foreign/secret.jsonl",
            "{place}/data/*/../../foreign/*",
            "{place}/data/**/../../foreign/secret.jsonl",
            "{place}/da[t]a/own.jsonl",
            "{place}/*/secret.jsonl",
            "{place}/database/x",
            "foreign/secret.jsonl",
            "../*",
            "/**/*",
            "/etc/passwd",
            "/proc/self/environ",
            "~/.ssh/id_rsa",
            "~nobody-here/x",
            "file:///etc/passwd",
            "s3://bucket/x.jsonl",
            "data/own.jsonl\0",
        ],
    )
    def test_anything_else_is_refused_with_value_field_and_variable_whether_it_exists_or_not(
        self, place: Path, pattern: str
    ):
        with pytest.raises(NotAuthorisedError, match=REFUSED) as caught:
            find_inputs((pattern.format(place=place),))
        assert str(caught.value).startswith(f"{FIELD} ")

    @pytest.mark.parametrize(
        "pattern", ["data/link.jsonl", "data/*.jsonl", "data/folder/secret.jsonl", "data/**/*.jsonl"]
    )
    def test_a_symlink_that_leads_out_is_refused_by_name_and_by_glob(self, place: Path, pattern: str):
        (place / "data" / "link.jsonl").symlink_to(place / "foreign" / "secret.jsonl")
        (place / "data" / "folder").symlink_to(place / "foreign")
        with pytest.raises(NotAuthorisedError, match=REFUSED):
            find_inputs((pattern,))

    def test_a_root_may_be_a_symlink_itself(self, place: Path, monkeypatch: pytest.MonkeyPatch):
        (place / "alias").symlink_to(place / "data")
        monkeypatch.setenv("POTSTILL_DATA_ROOTS", str(place / "alias"))
        assert paths("data/own.jsonl") == [Path("data/own.jsonl")]

    def test_the_stage_refuses_too_and_reads_nothing(self, place: Path):
        config = Curation(inputs=("foreign/secret.jsonl",))
        for call in (
            lambda: stage_key(config, "extraction"),
            lambda: curate(config, "extraction", ArtifactStore(place / "home")),
        ):
            with pytest.raises(NotAuthorisedError):
                call()
        assert not list((place / "home").rglob("prompts.parquet"))


class TestExchangedSymlinks:
    """Between the look and the read, an attacker who writes into a root exchanges a file for a symlink."""

    def test_what_is_opened_is_what_was_allowed(self, place: Path, monkeypatch: pytest.MonkeyPatch):
        path = place / "data" / "own.jsonl"
        opened = Path.open

        def exchange_then_open(self: Path, *arguments: str):
            path.unlink()
            path.symlink_to(place / "foreign" / "secret.jsonl")
            return opened(self, *arguments)

        monkeypatch.setattr(Path, "open", exchange_then_open)
        with pytest.raises(NotAuthorisedError, match=REFUSED):
            open_inside(path, FIELD)

    def test_putting_the_file_back_before_the_second_look_does_not_help(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ):
        path, aside = place / "data" / "own.jsonl", place / "data" / "aside"
        opened = Path.open

        def exchange_open_and_put_back(self: Path, *arguments: str):
            path.rename(aside)
            path.symlink_to(place / "foreign" / "secret.jsonl")
            file = opened(self, *arguments)
            path.unlink()
            aside.rename(path)
            return file

        monkeypatch.setattr(Path, "open", exchange_open_and_put_back)
        with pytest.raises(NotAuthorisedError, match=REFUSED):
            open_inside(path, FIELD)

    def test_an_honest_file_is_read(self, place: Path):
        with open_inside(place / "data" / "own.jsonl", FIELD) as file:
            assert file.read() == LINE.encode()


def make_base(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


class TestBase:
    def test_a_directory_below_a_root_is_found(self, place: Path):
        assert find_base(Student(base=str(make_base(place / "data" / "base")))) == place / "data" / "base"

    @pytest.mark.parametrize("base", ["{place}/foreign", "./foreign/no-such", "../x", "~/base", "/etc", "foreign/base"])
    def test_another_is_refused(self, place: Path, base: str):
        make_base(place / "foreign" / "base")
        with pytest.raises(NotAuthorisedError, match=rf"^student\.base .*{REFUSED}"):
            resolve_base(Student(base=base.format(place=place)), ArtifactStore(place / "home"))

    def test_a_file_in_it_that_leads_out_is_refused(self, place: Path):
        base = make_base(place / "data" / "base")
        (base / "tokenizer.json").symlink_to("/etc/passwd")
        with pytest.raises(NotAuthorisedError, match=REFUSED):
            find_base(Student(base=str(base)))

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            (["pytorch_model.bin"], "its weights are pickles"),
            (["adapter_config.json", "model.safetensors"], "names another base"),
        ],
    )
    def test_pickles_and_adapters_are_no_base_for_anybody(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], said: str
    ):
        monkeypatch.delenv("POTSTILL_DATA_ROOTS")
        base = place / "base"
        base.mkdir()
        for name in ("config.json", *files):
            (base / name).write_text("{}")
        with pytest.raises(DataError, match=said):
            find_base(Student(base=str(base)))


class TestConfined:
    def test_a_user_at_a_shell_reads_what_they_may(self, place: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("POTSTILL_DATA_ROOTS")
        assert not is_confined()
        assert find_inputs(("foreign/secret.jsonl",))

    @pytest.mark.parametrize("roots", [None, "", " ; "])
    def test_a_run_of_a_worker_for_which_nothing_is_set_reads_the_inbox_only(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, roots: str | None
    ):
        monkeypatch.delenv("POTSTILL_DATA_ROOTS")
        if roots is not None:
            monkeypatch.setenv("POTSTILL_DATA_ROOTS", roots)
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "0")
        inbox = place / "home" / "inbox" / "router"
        inbox.mkdir(parents=True)
        (inbox / "1.jsonl").write_text(LINE)
        assert paths(f"{inbox}/*.jsonl") == [inbox / "1.jsonl"]
        with pytest.raises(NotAuthorisedError, match=r"data/own\.jsonl.*POTSTILL_DATA_ROOTS"):
            find_inputs(("data/own.jsonl",))

    def test_a_deployed_run_that_nothing_confines_does_not_start(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("POTSTILL_DATA_ROOTS")
        recipe = Recipe.model_validate(
            {
                "name": "r",
                "task": {"kind": "extraction"},
                "curation": {"inputs": ["data/own.jsonl"]},
                "teacher": {"model": "gpt-4o"},
                "student": {"base": "./foreign"},
            }
        )
        with pytest.raises(NotAuthorisedError, match="set it for the worker"):
            check(recipe, is_deployed=True)


class TestRoots:
    @pytest.mark.parametrize("between", [":", ";", "\n", " ; ", " : "])
    def test_they_are_separated_by_colons_semicolons_or_line_ends(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, between: str
    ):
        named = (f"{place}/data", f"{place}/with: colon", f"{place}/with blank")
        monkeypatch.setenv("POTSTILL_DATA_ROOTS", between.join(named))
        assert read_roots() == (
            place / "home" / "inbox",
            place / "data",
            place / "with: colon",
            place / "with blank",
        )

    def test_a_relative_one_is_refused(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("POTSTILL_DATA_ROOTS", "data")
        with pytest.raises(UsageError, match="POTSTILL_DATA_ROOTS: data: name an absolute directory"):
            find_inputs(("data/own.jsonl",))

    @pytest.mark.parametrize("others", ["", "{place}/data:", "{place}/data;"])
    @pytest.mark.parametrize("url", ["https://host/prompts", "s3://b*/x", "gs://bucket/x"])
    def test_a_url_that_is_no_bucket_is_refused_by_its_name_since_no_recipe_could_read_below_it(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, others: str, url: str
    ):
        monkeypatch.setenv("POTSTILL_DATA_ROOTS", f"{others.format(place=place)}{url}")
        said = f"POTSTILL_DATA_ROOTS: {re.escape(url)}: name an absolute directory or s3://BUCKET/PREFIX"
        with pytest.raises(UsageError, match=said):
            find_inputs(("data/own.jsonl",))

    @pytest.mark.parametrize(
        "pattern", ["s3://logs/june/a.jsonl", "s3://logs/june/*.gz", "s3://logs/june", "s3://other/x"]
    )
    def test_a_bucket_is_read_below_its_roots(self, place: Path, monkeypatch: pytest.MonkeyPatch, pattern: str):
        monkeypatch.setenv("POTSTILL_DATA_ROOTS", f"{place}/data:s3://logs/june/:s3://other")
        check_url(pattern, FIELD)
        assert paths("data/own.jsonl") == [Path("data/own.jsonl")]

    @pytest.mark.parametrize(
        "pattern",
        [
            *("s3://logs/july/a.jsonl", "s3://logs/june-secret/a", "s3://logs/*", "s3://*/june/a", "s3://logs/june*"),
            *("s3://logs", "s3://logs/june/../july/a", "s3://others/x", "S3://other/x", "s3://other@evil/x"),
        ],
    )
    def test_no_bucket_is_read_beside_them(self, place: Path, monkeypatch: pytest.MonkeyPatch, pattern: str):
        monkeypatch.setenv("POTSTILL_DATA_ROOTS", f"{place}/data:s3://logs/june/:s3://other")
        with pytest.raises(NotAuthorisedError, match=REFUSED):
            find_inputs((pattern,))

    def test_nothing_is_checked_where_nobody_is_confined(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("POTSTILL_DATA_ROOTS")
        check_path(Path("/etc/passwd"), FIELD)
        check_pattern("/etc/*", FIELD)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read everything, and is refused all the same")
def test_the_check_asks_no_permission_of_the_system(place: Path):
    with pytest.raises(NotAuthorisedError):
        open_inside(Path("/etc/shadow"), FIELD)
