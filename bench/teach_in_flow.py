"""The teacher stage under Prefect and nothing else of the parent flow: what `bench.teacher` puts beside the command line.

python -m bench.teach_in_flow URL PROMPTS OUT CONCURRENCY
"""

import sys
from decimal import Decimal
from pathlib import Path

from prefect import flow

from potstill.artifacts import ArtifactRef, StageKey, open_store
from potstill.cli.inputs import open_rows
from potstill.recipe import Price, Recipe
from potstill.recipe_file import load_recipe
from potstill.records import Prompt, write_parquet
from tasks.server import start_server
from tasks.teaching import teach

RECIPE = Path("recipes/demo.yaml")


@flow(name="teach-only")
def teach_only(recipe: Recipe, prompts: ArtifactRef) -> ArtifactRef:
    """The teacher stage of the parent flow."""
    return teach(recipe, prompts)


def main() -> None:
    url, source, target, concurrency = sys.argv[1:]
    store = open_store()
    rows = open_rows(Path(source), redact=False)
    asked = (row.prompt for row in rows.read(0, len(rows)))
    key = StageKey("bench-prompts", 1, rows.digest)
    prompts = store.build(
        key, "PromptSet", lambda directory: write_parquet(directory / "prompts.parquet", asked, Prompt)
    )
    start_server()
    completions = teach_only(_recipe(url, int(concurrency)), prompts)
    store.export(completions, Path(target))


def _recipe(url: str, concurrency: int) -> Recipe:
    """The demo's, with the teacher that the command line is given in the same benchmark."""
    recipe = load_recipe(RECIPE)
    price = Price(input_per_million=Decimal(1), output_per_million=Decimal(10))
    asked = {"base_url": url, "model": "gpt-4o-mini", "max_tokens": 256, "temperature": 0.0, "concurrency": concurrency}
    teacher = recipe.teacher.model_copy(update={**asked, "price": price})
    task = recipe.task.model_copy(update={"kind": "extraction", "labels": ()})
    budget = recipe.budget.model_copy(update={"run_usd": None})
    return recipe.model_copy(update={"teacher": teacher, "task": task, "budget": budget})


if __name__ == "__main__":
    main()
