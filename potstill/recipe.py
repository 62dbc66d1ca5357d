"""The recipe: everything that decides what a run does. Frozen; YAML in, fingerprint out."""

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from potstill.answer_schema import check_schema
from potstill.fingerprint import fingerprint
from potstill.kinds import Choice, Turns
from potstill.outbound import check_address, check_headers, is_azure
from potstill.recipe_form import AS_JSON_TEXT, AsNumber, arrange, normalise_usd, read_json
from potstill.records import TaskKind

Fraction = Annotated[float, Field(ge=0, lt=1)]
Usd = Annotated[
    Decimal,
    Field(ge=0, le=10**6, decimal_places=12),
    AfterValidator(normalise_usd),
    *AsNumber,
]
"""Trailing zeros go: 10, 10.0 and "10.00" are one price, and must give one fingerprint."""


INBOX = "inbox"
"""Among `curation.inputs`: what the webhook has landed for this recipe. A file of that name is ./inbox."""
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""A model takes some of these; it refuses the others itself."""


class Part(BaseModel):
    """A section of the recipe; the description of each field is what a form shows."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, json_schema_extra=arrange
    )


class Task(Part):
    """What the student has to do."""

    kind: TaskKind = Field(description="How answers are checked and scored.")
    labels: tuple[str, ...] = Field(default=(), description="Classification: the only answers that count.")
    scorer: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
        description="Name of an installed scorer of your own, in place of the kind's.",
    )

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> Self:
        if self.kind == "classification" and len(set(self.labels)) < 2:
            raise ValueError("a classification needs at least two labels: list them in task.labels")
        if self.kind != "classification" and self.labels:
            raise ValueError("labels belong to a classification: remove task.labels")
        return self


class Curation(Part):
    """From logs to a prompt set."""

    inputs: tuple[str, ...] = Field(
        min_length=1, description="Files, globs and folders of logs in any known form. inbox: what the webhook landed."
    )
    workload: str | None = Field(default=None, description="Keep only the log's lines with this workload_id.")
    turns: Turns = Field(
        default="last", description="each: a conversation is one prompt before each answer in it, not the last only."
    )
    validation_fraction: Fraction = Field(default=0.05, description="Share of prompts to watch training with.")
    test_fraction: Fraction = Field(default=0.2, description="Share of prompts that only evaluation sees.")
    split_key: str = Field(default="potstill", description="Keys the split. Changing it moves prompts between splits.")
    max_bad_fraction: Fraction = Field(default=0.05, description="More unusable lines than this stop the run.")

    @model_validator(mode="after")
    def _leaves_prompts_to_train(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction leave nothing to train on: keep their sum below 1")
        return self


class Price(Part):
    """USD for a million tokens, where the price list does not know the model or another price was agreed."""

    input_per_million: Usd = Field(description="USD for a million prompt tokens.")
    output_per_million: Usd = Field(description="USD for a million completion tokens.")


class Teacher(Part):
    """The model that answers each prompt once."""

    provider: Literal["openai", "anthropic", "openai_compatible"] = Field(
        default="openai", description="The protocol of its endpoint."
    )
    model: str = Field(min_length=1, description="The model's name at the provider.")
    base_url: str | None = Field(default=None, description="Address of the API, such as http://127.0.0.1:8000/v1.")
    api_key_env: str | None = Field(default=None, description="Environment variable that holds the key.")
    api_key_block: str | None = Field(
        default=None, pattern=r"^[a-z0-9-]+$", description="Prefect Secret block that holds the key; in a flow only."
    )
    headers: dict[str, str] = Field(default={}, description="More headers for every request; never a key.")
    api_version: str | None = Field(default=None, description="Azure's api-version, sent in the query.")
    price: Price | None = Field(default=None, description="Overrides the price list.")
    instructions: str | None = Field(
        default=None, description="Guidance that only the teacher sees; the student never trains on it."
    )
    response_schema: Annotated[dict[str, Any] | None, AS_JSON_TEXT] = Field(
        default=None, description="A JSON schema that the answer must follow."
    )
    max_tokens: int = Field(default=1024, ge=1, description="Longest answer, in tokens.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="Left to the provider when empty.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Left to the provider when empty.")
    stop: tuple[str, ...] = Field(default=(), max_length=4, description="Texts that end an answer.")
    reasoning_effort: Effort | None = Field(
        default=None, description="How long it thinks; what it thinks is billed as output."
    )
    seed: int | None = Field(default=None, description="Sent to the provider when set.")
    prompt_caching: bool = Field(default=True, description="Let the provider keep a long shared beginning of prompts.")
    samples: int = Field(default=1, ge=1, le=16, description="Answers asked for each prompt; one is trained on.")
    choose: Choice = Field(
        default="first",
        description="Which usable sample is trained on: the first, one that most agree with, or the scorer's best.",
    )
    quality_retries: int = Field(
        default=0, ge=0, le=4, description="Further samples asked for while all of a prompt must not be trained on."
    )
    mode: Literal["online", "batch"] = Field(
        default="online", description="batch: half the price, and an answer within a day."
    )
    batch_poll_seconds: float = Field(default=60, gt=0, description="How often a batch is looked at.")
    stragglers_online: bool = Field(
        default=False, description="What a batch leaves without an answer is asked for online, at the full price."
    )
    concurrency: int = Field(default=16, ge=1, le=1024, description="Requests in flight at most.")
    rpm: int | None = Field(default=None, ge=1, description="Requests a minute at most.")
    tpm: int | None = Field(default=None, ge=1, description="Tokens a minute at most.")
    timeout_seconds: float = Field(default=120, gt=0, description="How long one request may take.")
    batch_size: int = Field(default=64, ge=1, description="Prompts in one Prefect task.")
    attest: str | None = Field(
        default=None, description="Your statement that the teacher's terms allow training on its output."
    )

    @model_validator(mode="after")
    def _has_address(self) -> Self:
        if self.provider == "openai_compatible" and not self.base_url:
            raise ValueError("an openai_compatible teacher needs base_url, such as http://127.0.0.1:8000/v1")
        if self.mode == "batch" and (self.api_version is not None or is_azure(self.base_url or "")):
            raise ValueError("Azure's batches are another protocol, which is not spoken here: set mode to online")
        return self

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if self.api_key_env and self.api_key_block:
            raise ValueError("api_key_env and api_key_block both name a key: keep one of them")
        return self

    @field_validator("base_url")
    @classmethod
    def _is_plain(cls, base_url: str | None) -> str | None:
        check_address(base_url or "")
        return base_url

    @field_validator("response_schema", mode="before")
    @classmethod
    def _read_text(cls, schema: Any) -> Any:
        return read_json(schema)

    @field_validator("response_schema")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            check_schema(schema)
        return schema

    @field_validator("headers", mode="before")
    @classmethod
    def _read_names(cls, headers: Any) -> Any:
        read = read_json(headers)
        return {} if read is None else read

    @field_validator("headers")
    @classmethod
    def _carry_no_key(cls, headers: dict[str, str]) -> dict[str, str]:
        check_headers(headers)
        return headers


class Budget(Part):
    """What may be spent."""

    run_usd: Usd | None = Field(default=None, description="Cap of one run and its resumptions, in USD.")
    month_usd: Usd | None = Field(default=None, description="Cap of all runs of this recipe in a UTC month, in USD.")


class Student(Part):
    """The base model that is taught."""

    base: str = Field(description="A hub id, a directory, or package:NAME for a model that an installed package ships.")
    revision: str | None = Field(default=None, description="Commit of the hub repository.")


class Dpo(Part):
    """The optional second rung: chosen = teacher, rejected = the student base's own output."""

    learning_rate: float = Field(default=5e-6, gt=0, description="Peak; it falls linearly.")
    beta: float = Field(default=0.1, gt=0, description="How firmly the rung holds on to the SFT student.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs.")
    max_pairs: int = Field(default=1000, ge=1, description="Pairs used at most, in the order of their prompt ids.")


class Training(Part):
    """How the student learns. LoRA on all linear layers, loss on the completion only."""

    epochs: float = Field(default=2.0, gt=0, description="Passes over the examples.")
    learning_rate: float = Field(default=2e-4, gt=0, description="Peak; it falls linearly.")
    batch_size: int = Field(default=16, ge=1, description="Sequences a step.")
    max_length: int = Field(
        default=2048, ge=16, description="Tokens of prompt and completion; longer examples are dropped."
    )
    lora_rank: Literal[1, 8, 16, 32, 64, 128] = Field(default=32, description="Ranks that vLLM can serve.")
    lora_alpha: int = Field(default=64, ge=1, description="Scale of the adapter.")
    seed: int = Field(default=0, description="Of weights and order.")
    checkpoint_steps: int = Field(default=20, ge=1, description="A crash costs at most these steps.")
    dpo: Dpo | None = Field(default=None, description="Adds a DPO rung after SFT.")


class Evaluation(Part):
    """How answers to the test split are generated."""

    max_tokens: int = Field(default=512, ge=1, description="Longest answer of the student, in tokens.")
    batch_size: int = Field(default=16, ge=1, description="Prompts generated together.")


class Gate(Part):
    """When the student may serve."""

    retention_floor: float = Field(
        default=0.95, gt=0, le=1, description="Share of the teacher's score that must be kept."
    )
    alpha: float = Field(
        default=0.05, gt=0, lt=0.5, description="Chance to pass a student that lies exactly at the floor."
    )
    champion_margin: float = Field(default=0.03, ge=0, lt=1, description="How much worse than the champion it may be.")
    min_prompts: int = Field(default=50, ge=1, description="Below this many scored test prompts nothing is decided.")
    approval: Literal["auto", "ask"] = Field(
        default="auto", description="ask: a student that passed is released only when somebody has approved it."
    )
    approval_hours: float = Field(default=72, gt=0, description="How long a run waits for approval; then no release.")


class Inbox(Part):
    """When prompts that landed are worth a new student; for the nightly run and the webhook."""

    min_new_prompts: int = Field(default=100, ge=1, description="Fewer new prompts than this wait for more.")
    min_interval_seconds: float = Field(
        default=3600, ge=0, description="Webhooks start a run at most once in this time."
    )


class Compute(Part):
    """Where the heavy stages run."""

    train: Literal["inline", "pool"] = Field(
        default="inline", description="pool: students are trained and asked by the workers of pool gpu."
    )
    teach: Literal["threads", "dask"] = Field(
        default="threads", description="dask: the teacher is asked from the Dask workers that POTSTILL_DASK names."
    )


class Serving(Part):
    """The machine that serves, for the account of costs."""

    usd_per_hour: Usd = Field(default=Decimal(1), description="Price of an hour of the serving machine, in USD.")


class Recipe(Part):
    """One student: what it learns, from whom, on which prompts, and when it may serve."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Names runs, releases and the served model.")
    notes: str = Field(default="", description="What a reader of the report must know about this recipe.")
    task: Task = Field(description="What the student has to do.")
    curation: Curation = Field(description="From logs to a prompt set.")
    teacher: Teacher = Field(description="The model that answers each prompt once.")
    budget: Budget = Field(default=Budget(), description="What may be spent.")
    student: Student = Field(description="The base model that is taught.")
    training: Training = Field(default=Training(), description="How the student learns.")
    evaluation: Evaluation = Field(default=Evaluation(), description="How answers to the test split are generated.")
    gate: Gate = Field(default=Gate(), description="When the student may serve.")
    inbox: Inbox = Field(default=Inbox(), description="When prompts that landed are worth a new student.")
    compute: Compute = Field(default=Compute(), description="Where the heavy stages run.")
    serving: Serving = Field(default=Serving(), description="The machine that serves, for the account of costs.")

    @property
    def fingerprint(self) -> str:
        """sha256 of the whole recipe, 64 hex digits; the order of its fields and the layout of its YAML do not count."""
        return fingerprint(self.model_dump(mode="json"))


def allowed_values(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The names that are allowed at a place in the recipe: the fields of the section that holds it."""
    current: Any = model
    for name in path[:-1]:
        annotation = current.model_fields[name].annotation if name in getattr(current, "model_fields", {}) else None
        parts = [annotation, *getattr(annotation, "__args__", ())]
        current = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
        if current is None:
            return []
    return sorted(current.model_fields)
