# The front door. Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
TORCH ?= auto
DRACO := .venv/bin/python -IX utf8 -m draco
# A value as one word of the shell, whatever is in it: JOB="my job.yaml". It may begin with ~/.
quoted = $(if $(filter ~/%,$(firstword $(1))),~/)'$(subst ','\'',$(if $(filter ~/%,$(firstword $(1))),$(1:~/%=%),$(1)))'
given = $(if $(value $(1)),$(call quoted,$(value $(1))))
option = $(if $(value $(2)),--$(1) $(call given,$(2)))
# One path with spaces where there is such a file or folder, several paths otherwise.
paths = $(if $(shell test -e $(call given,$(1)) && echo yes),$(call given,$(1)),$(value $(1)))
TRAIN_OPTIONS = $(call option,set,SET) $(if $(SIMULATE),--simulate) $(if $(RESUME),--resume) \
    $(if $(RECORDED),--recorded-code) $(if $(NEW),--new) $(if $(DRY_RUN),--dry-run) $(if $(DETACH),--detach)
# Where: the cluster that is up if there is one, NAME=... among several, LOCAL=1 this machine all the same.
WHERE = $(call option,on,NAME) $(if $(LOCAL),--here)
CLUSTER_NAME = $(call option,name,NAME)
UP_OPTIONS = $(CLUSTER_NAME) $(call option,cluster,CLUSTER) $(call option,workers,WORKERS) $(call option,image,IMAGE) \
    $(call option,cpus,CPUS) $(call option,memory-mb,MEMORY_MB) $(call option,inventory,INVENTORY) $(if $(YES),--yes) $(SETTINGS)
# What CLUSTER=aws is told: SET="region=us-west-2 worker_types=m5.large"; the commonest have a word of their own.
SETTINGS = $(call option,set,SET) $(if $(value REGION),--set region=$(call given,REGION)) \
    $(if $(value HOURS),--set hours=$(call given,HOURS)) $(if $(value MAX_PRICE),--set max_price=$(call given,MAX_PRICE))
PLAN_OPTIONS = $(CLUSTER_NAME) $(call option,cluster,CLUSTER) $(call option,workers,WORKERS) \
    $(call option,image,IMAGE) $(SETTINGS)

.DEFAULT_GOAL := help
.PHONY: help setup train eval export verify report compare logs stop data validate test test-all test-gpu \
    lint lint-python lint-others bench schema wheel lock clean soak image cluster-up cluster-status status ssh \
    cluster-down cluster-purge plan doctor extend interrupt leftovers

help: ## List the targets
	@echo "make train JOB=jobs/quickstart.yaml   is the place to start"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## Set up .venv (TORCH=cpu|cuda, PYTHON=, EXTRAS=tensorboard); other targets do it themselves
	@$(PYTHON) -I bootstrap.py --torch $(TORCH) --extras $(call given,EXTRAS)

.venv/ready: bootstrap.py pyproject.toml constraints.txt
	@$(PYTHON) -I bootstrap.py --torch $(TORCH)

.venv/ready-cluster: .venv/ready
	@$(PYTHON) -I bootstrap.py --torch $(TORCH) --extras cluster && touch $@

.venv/ready-dev: .venv/ready
	@$(PYTHON) -I bootstrap.py --torch $(TORCH) --extras dev && touch $@

train: .venv/ready ## Train JOB=... (SET="a.b=v c=d" SIMULATE=1 RESUME=1 RECORDED=1 NEW=1 DRY_RUN=1 DETACH=1 LOCAL=1)
	@$(if $(value JOB),,echo "make train: say which job: make train JOB=jobs/quickstart.yaml" >&2; exit 2)
	@$(DRACO) train $(call given,JOB) $(TRAIN_OPTIONS) $(WHERE)

eval: .venv/ready ## Evaluate the newest run, or RUN=runs/... (FOLLOW=1 waits for new checkpoints)
	@$(DRACO) eval $(call given,RUN) $(if $(FOLLOW),--follow) $(WHERE)

export: .venv/ready ## Write the newest run's model, or that of RUN=..., as a file for PyTorch (STEP= BEST=1 LAST=1 TRAINED=1 OUTPUT=)
	@$(DRACO) export $(call given,RUN) $(call option,step,STEP) $(if $(BEST),--best) $(call option,format,FORMAT) \
	    $(if $(LAST),--last) $(if $(TRAINED),--trained) $(call option,output,OUTPUT) $(WHERE)

verify: .venv/ready ## Recompute a random part of the newest run, or RUN=... (SAMPLE=1%, SEED=, DATA=folder, HEAD=, TOLERANCE=)
	@$(DRACO) verify $(call given,RUN) $(call option,sample,SAMPLE) $(call option,seed,SEED) $(call option,data,DATA) \
	    $(call option,head,HEAD) $(call option,tolerance,TOLERANCE) $(WHERE)

report: .venv/ready ## Show what happened in the newest run, or RUN="runs/a runs/b ...", and write a page (HTML=folder)
	@$(DRACO) report $(call paths,RUN) $(call option,html,HTML) $(WHERE)

compare: .venv/ready ## Run every cell of GRID=jobs/compare/... that is not done, and tabulate (PROCESSES= DRY_RUN=1 NEW=1)
	@$(if $(value GRID),,echo "make compare: say which grid: make compare GRID=jobs/compare/robustness.yaml" >&2; exit 2)
	@$(DRACO) compare $(call given,GRID) $(call option,processes,PROCESSES) $(if $(DRY_RUN),--dry-run) $(if $(NEW),--new)

logs: .venv/ready ## What the newest run printed, or RUN=... (RANK=n FOLLOW=1)
	@$(DRACO) logs $(call given,RUN) $(call option,rank,RANK) $(if $(FOLLOW),--follow) $(WHERE)

stop: .venv/ready ## Stop the newest run, or RUN=..., after its step, with a checkpoint (LOST=1: it went with its machine)
	@$(DRACO) stop $(call given,RUN) $(if $(LOST),--lost) $(WHERE)

data: .venv/ready ## Download or convert the data of JOB=... beforehand
	@$(DRACO) data $(call given,JOB) $(WHERE)

validate: .venv/ready ## Check every job file, or JOB=... (RUN_CODE=1: run its own task too)
	@$(DRACO) validate $(if $(RUN_CODE),--run-code) $(if $(value JOB),$(call paths,JOB),$(wildcard jobs/*.yaml jobs/gpu/*.yaml examples/*.yaml))

image: ## Build the trainer image draco:latest (BASE= WHEELS_DIR= TORCH=cuda; images/README.md)
	@images/build.sh

cluster-up: .venv/ready-cluster ## Bring a cluster up or repair it (CLUSTER=docker|netns|ssh|aws WORKERS=3 NAME=dev)
	@$(DRACO) cluster up $(UP_OPTIONS)

cluster-status: .venv/ready ## Nodes, health, image and what the newest run is doing (NAME= FORMAT=json)
	@$(DRACO) cluster status $(CLUSTER_NAME) $(if $(filter json,$(FORMAT)),--json)

status: cluster-status ## The same

plan: .venv/ready-cluster ## What CLUSTER=aws would cost (WORKERS=3 REGION= HOURS=4 MAX_PRICE= SET="..." FORMAT=json)
	@$(DRACO) cluster plan $(PLAN_OPTIONS) $(if $(filter json,$(FORMAT)),--json)

doctor: .venv/ready-cluster ## What CLUSTER=aws needs, and what of it is missing
	@$(DRACO) cluster doctor $(PLAN_OPTIONS)

extend: .venv/ready-cluster ## Let a cluster on AWS live HOURS=2 longer (NAME= YES=1)
	@$(if $(value HOURS),,echo "make extend: say how much longer: make extend HOURS=2" >&2; exit 2)
	@$(DRACO) cluster extend --hours $(call given,HOURS) $(CLUSTER_NAME) $(if $(YES),--yes)

interrupt: .venv/ready ## Take NODE=worker-02 away as a cloud does and tell how the run comes back (NOTICE=120 WAIT=180 YES=1)
	@$(if $(value NODE),,echo "make interrupt: say which worker: make interrupt NODE=worker-02" >&2; exit 2)
	@$(DRACO) cluster interrupt $(call given,NODE) $(CLUSTER_NAME) $(call option,notice,NOTICE) \
	    $(call option,wait,WAIT) $(if $(YES),--yes)

leftovers: .venv/ready-cluster ## Everything of Draco at AWS (REGION= NAME=); REMOVE=1 removes what was lost track of
	@$(DRACO) cluster leftovers $(CLUSTER_NAME) $(call option,region,REGION) $(if $(REMOVE),--remove) \
	    $(if $(YES),--yes)

ssh: .venv/ready ## Open a shell on NODE=head, worker-01 ... of the cluster (NAME=)
	@$(DRACO) cluster ssh $(call given,NODE) $(CLUSTER_NAME)

cluster-down: .venv/ready ## Remove the cluster's nodes, networks and keys; runs and data stay (NAME=dev)
	@$(DRACO) cluster down $(CLUSTER_NAME) $(call option,cluster,CLUSTER)

cluster-purge: .venv/ready ## Remove the runs and data of a cluster that is down (NAME=dev YES=1)
	@$(DRACO) cluster purge $(CLUSTER_NAME) $(call option,cluster,CLUSTER) $(if $(YES),--yes)

# What needs no root, Docker or Terraform; the rest, and whatever takes long, is for test-all.
QUICK = $(addprefix tests/,docs tasks training library protocols job launch report cli code experiment examples)

# Bytecode is kept, whatever the environment says: else each process compiles what it imports, and pytest rewrites all tests.
COMPILED = env -u PYTHONDONTWRITEBYTECODE
TESTED = $(COMPILED) .venv/bin/python -m pytest

test: .venv/ready-dev ## Run the tests that need nothing else, in 6 to 9 minutes (ARGS="-k cyclic" goes to pytest)
	@$(TESTED) -n auto --dist loadfile -m "not long and not posing" $(QUICK) $(ARGS) || [ $$? -eq 5 ] # 5: ARGS selects none
	@$(TESTED) -n auto --dist loadfile -m posing $(QUICK) $(ARGS) || [ $$? -eq 5 ]

test-all: .venv/ready-dev ## Run all tests, with clusters, a fake AWS and faults: what needs root, Docker or Terraform too
	@# Four processes for two cores, as launches and Terraform mostly wait; in order, so that those begin early.
	@$(TESTED) -n 4 --dist loadfile --no-loadscope-reorder -m "not alone and not posing" $(ARGS) || [ $$? -eq 5 ]
	@$(TESTED) -n 2 --dist loadfile -m posing $(ARGS) || [ $$? -eq 5 ]
	@# Clusters mostly wait, too, and share nothing: two at a time, each file in one process, the two longest first.
	@$(TESTED) -n 2 --dist loadfile --no-loadscope-reorder -m alone tests/aws tests/cluster $(ARGS) || [ $$? -eq 5 ]

# One process: its tests share the GPU, and start ranks that do.
test-gpu: .venv/ready-dev ## Run the tests that need a GPU, in at most 5 minutes on one (ARGS="-k kernels" goes to pytest)
	@.venv/bin/python -m benchmarks.gpu_here
	@$(TESTED) -p no:xdist -m gpu $(QUICK) tests/guard $(ARGS)

SHELL_FILES = .ci/run .ci/engine images/*.sh draco/cluster/netns_node.sh infra/cluster/files/*.sh $(wildcard ansible/roles/gpu/files/*.sh) \
    $(addprefix tests/aws/fake_aws/stand_ins/,aws boot.sh docker-cdi machine.sh mount.efs nvidia-ctk nvidia-smi shutdown) examples/slurm/train.sbatch

soak: .venv/ready-cluster ## Disturb a run at random and compare its model (WHERE=local|netns|docker FAULTS=50 MINUTES=20 SEED=1)
	@PYTHONPATH=tests:tests/cluster .venv/bin/python tests/launch/soak.py $(if $(WHERE),--where $(WHERE)) $(if $(FAULTS),--faults $(FAULTS)) \
	    $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

lint: lint-python lint-others ## Check all files

lint-python: .venv/ready-dev ## The half of lint that reads Python code: ruff and mypy
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

lint-others: .venv/ready-dev ## Its other half: yamllint, shellcheck, hadolint, ansible-lint and checkov
	@.venv/bin/yamllint --strict ansible jobs examples && .venv/bin/shellcheck $(SHELL_FILES) && .venv/bin/hadolint images/Dockerfile
	@cd ansible && $(COMPILED) PATH="../.venv/bin:$$PATH" ../.venv/bin/ansible-lint --offline
	@.venv/bin/uv tool run --from checkov==3.3.30 checkov -d infra --quiet --compact --skip-download

bench: .venv/ready-dev ## Measure kernels, aggregators and a training step against copies and peers (ARGS="--only aggregators")
	@$(DRACO) bench $(ARGS)

schema: .venv/ready ## Write jobs/schema.json and docs/jobs.md, the reference of every key, anew from the tables
	@$(DRACO) validate --schema > jobs/schema.json && $(DRACO) validate --reference > docs/jobs.md

wheel: .venv/ready ## Build the package for other environments, dist/draco-*.whl (docs/library.md)
	@rm -rf build && .venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation -w dist . && ls dist/draco-*.whl

lock: .venv/ready-dev ## Write constraints.txt anew from what is installed
	@.venv/bin/python -m pip freeze --all | grep -viE '^(torch|torchvision|draco|hdmedians|mlxtend|byzfl|byzpy|pip|-e|#)' > constraints.txt

clean: ## Remove the virtual environment and caches; runs and data stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis draco.egg-info build dist
