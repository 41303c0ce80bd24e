# The front door. Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
TORCH ?= auto
DRACO := .venv/bin/python -m draco
TRAIN_OPTIONS = $(foreach value,$(SET),--set $(value)) $(if $(SIMULATE),--simulate) $(if $(RESUME),--resume) $(if $(NEW),--new) $(if $(DRY_RUN),--dry-run)

.DEFAULT_GOAL := help
.PHONY: help setup train eval report data validate test lint bench schema lock clean

help: ## List the targets
	@echo "make train JOB=jobs/quickstart.yaml   is the place to start"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## Set up .venv (TORCH=cpu|cuda, PYTHON=, EXTRAS=tensorboard); other targets do it themselves
	@$(PYTHON) bootstrap.py --torch $(TORCH) --extras "$(EXTRAS)"

.venv/ready: bootstrap.py pyproject.toml constraints.txt
	@$(PYTHON) bootstrap.py --torch $(TORCH)

.venv/ready-dev: .venv/ready
	@$(PYTHON) bootstrap.py --torch $(TORCH) --extras dev && touch $@

train: .venv/ready ## Train JOB=... (SET="a.b=v c=d" SIMULATE=1 RESUME=1 NEW=1 DRY_RUN=1)
	@$(if $(JOB),,echo "make train: say which job: make train JOB=jobs/quickstart.yaml" >&2; exit 2)
	@$(DRACO) train $(JOB) $(TRAIN_OPTIONS)

eval: .venv/ready ## Evaluate the newest run, or RUN=runs/... (FOLLOW=1 waits for new checkpoints)
	@$(DRACO) eval $(RUN) $(if $(FOLLOW),--follow)

report: .venv/ready ## Show what happened in RUN="runs/a runs/b ..."
	@$(DRACO) report $(RUN)

data: .venv/ready ## Download or convert the data of JOB=... beforehand
	@$(DRACO) data $(JOB)

validate: .venv/ready ## Check every job file, or JOB=...
	@$(DRACO) validate $(or $(JOB),$(wildcard jobs/*.yaml))

test: .venv/ready-dev ## Run the tests (ARGS="-k cyclic" is passed on to pytest)
	@.venv/bin/python -m pytest $(ARGS)

lint: .venv/ready-dev ## Run ruff and mypy
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

bench: .venv/ready-dev ## Measure the kernels and a training step against memory copies and peers
	@$(DRACO) bench $(ARGS)

schema: .venv/ready ## Write jobs/schema.json anew from the job model
	@$(DRACO) validate --schema > jobs/schema.json

lock: .venv/ready-dev ## Write constraints.txt anew from what is installed
	@.venv/bin/python -m pip freeze --all | grep -viE '^(torch|torchvision|draco|hdmedians|mlxtend|pip|-e|#)' > constraints.txt

clean: ## Remove the virtual environment and caches; runs and data stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis draco.egg-info
