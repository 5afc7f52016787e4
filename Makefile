# anima-pipe: everything a user or a contributor does, one target each. `make help` lists them.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
pip_install = $(VENV)/bin/python -m pip install --quiet --no-input -c constraints.txt
anima_pipe = $(VENV)/bin/anima-pipe

# Values reach the shell as environment variables, so that a path may hold spaces and quotes.
export DATASET CONFIG OUT INPUT OUTPUT

smoke_config := configs/smoke/anima_10steps_train_args.toml
smoke_dataset := configs/smoke/anima_dataset.toml
stages := fetch-tokenizer cache-latents encode-text train export

# A stage on its own runs the smoke configs unless told otherwise; a CONFIG may name its own dataset.
ifeq ($(CONFIG),)
$(stages): CONFIG = $(smoke_config)
ifeq ($(DATASET),)
cache-latents encode-text train: DATASET = $(smoke_dataset)
endif
endif
ifeq ($(INPUT),)
export: INPUT = $(or $(OUT),output/smoke)/smoke.safetensors
endif

with_config = $(if $(CONFIG),--config_file "$$CONFIG")
with_dataset = $(if $(DATASET),--dataset_config "$$DATASET")
with_output = $(if $(OUT),--output_dir "$$OUT")
# The smoke configs name a cache of their own; results elsewhere have theirs beside them.
with_cache = $(if $(OUT),$(if $(filter $(smoke_config),$(CONFIG)),--cache_dir "$$OUT/cache"))

##@ Work

.PHONY: all $(stages)

all: $(VENV)/.installed ## The five stages in turn, on the demo or on DATASET and CONFIG
	@$(anima_pipe) all $(with_config) $(with_dataset) $(with_output) $(ARGS)

fetch-tokenizer: $(VENV)/.installed ## Stage 1: the T5 tokenizer, fetched and checked
	@$(anima_pipe) fetch-tokenizer $(with_config) $(ARGS)

cache-latents: $(VENV)/.installed ## Stage 2: pictures to latent shards
	@$(anima_pipe) cache-latents $(with_config) $(with_dataset) $(with_cache) $(ARGS)

encode-text: $(VENV)/.installed ## Stage 3: captions to text shards
	@$(anima_pipe) encode-text $(with_config) $(with_dataset) $(with_cache) $(ARGS)

train: $(VENV)/.installed ## Stage 4: train an adapter on the shards
	@$(anima_pipe) train $(with_config) $(with_dataset) $(with_cache) $(with_output) $(ARGS)

export: $(VENV)/.installed ## Stage 5: write and verify the file for ComfyUI (INPUT, OUTPUT)
	@$(anima_pipe) export-comfy $(with_config) --input "$$INPUT" \
		--output "$${OUTPUT:-$${INPUT%.safetensors}_comfyui.safetensors}" $(ARGS)

##@ The project itself

.PHONY: test faults fuzz soak lint format bench bench-gpu docs lock hooks clean help

# One thread for each worker: the tests are many and small, and torch's threads would only contend.
test: $(VENV)/.installed-test ## Install the test extra and run every test
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest \
		-n logical --maxprocesses 8 --dist worksteal $(ARGS)

# 50 kills of each stage and of all five, as many full disks, read errors, jumps of the clock and
# deaths of workers: an hour or two. The same tests run in `make test`, with one of each.
faults: $(VENV)/.installed-test ## The campaign of faults in its long form; docs/reliability.md
	@ANIMA_PIPE_FAULT_TRIES="$${TRIES:-50}" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python \
		-m pytest -n logical --maxprocesses 8 --timeout 36000 tests/faults tests/test_workers.py $(ARGS)

fuzz: $(VENV)/.installed-fuzz ## A minute of fuzzing for each reader of files; ARGS="captions --seconds 600"
	@OMP_NUM_THREADS=1 $(VENV)/bin/python tests/fuzz/fuzz.py $(ARGS)

soak: $(VENV)/.installed ## Train the demo for 5,000 steps, and see that nothing grows
	@HF_HUB_OFFLINE=1 $(VENV)/bin/python tools/soak.py $(ARGS)

lint: $(VENV)/.installed-dev ## Style, layering and types
	@failed=; \
	for tool in 'ruff check .' 'ruff format --check .' lint-imports \
			'basedpyright --pythonpath $(VENV)/bin/python'; do \
		echo "== $$tool"; $(VENV)/bin/$$tool || failed="$$failed [$$tool]"; \
	done; \
	[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

format: $(VENV)/.installed-dev ## Let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.installed-test ## Run the measurements in bench/
	@for script in bench/*.py; do \
		echo "== $$script"; $(VENV)/bin/python "$$script" $(ARGS) || exit; \
	done

bench-gpu: $(VENV)/.installed-test ## Prove and measure all on a GPU; docs/performance.md
	@PYTHON="$(abspath $(VENV))/bin/python" bench/gpu.sh --out "$${OUT:-output/gpu}" $(ARGS)

docs: $(VENV)/.installed ## Write docs/options.md afresh from the table of options
	$(VENV)/bin/python -m anima_pipe.kohya.docs

lock: $(VENV)/.installed-dev ## Resolve all dependencies afresh into constraints.txt
	$(VENV)/bin/python tools/lock_dependencies.py $(ARGS)

hooks: $(VENV)/.installed-dev ## Run the linters before each commit
	$(VENV)/bin/pre-commit install

clean: ## Remove the virtual environment and the tools' caches, keep output/
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'Values'
	@echo '  Without CONFIG, a stage on its own runs the ten-step smoke configuration.'
	@echo '  DATASET=...  a folder of captioned pictures, or a dataset.toml'
	@echo '  CONFIG=...   a train_args.toml'
	@echo '  OUT=...      the folder for results'
	@echo '  ARGS="..."   more options for the command: make all ARGS="--max_train_epochs 5"'
	@echo '  PYTHON=...   the Python that makes $(VENV) (3.11 to 3.13)'
	@echo '  VENV=...     the place of the virtual environment, instead of .venv'

# The virtual environment

# Each stamp is younger than the two files that say what belongs into the environment. The larger
# sets hold the smaller ones, so that `make all` after `make test` installs nothing.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo 'Installing anima-pipe into $(VENV); the first time takes a few minutes.'
	@$(pip_install) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo 'Installing anima-pipe and what its tests need into $(VENV).'
	@$(pip_install) -e '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-fuzz: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo 'Installing anima-pipe and what looks for faults in it into $(VENV).'
	@$(pip_install) -e '.[fuzz]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo 'Installing anima-pipe and its development tools into $(VENV).'
	@$(pip_install) -e '.[dev]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

# A python on the PATH need not run (pyenv's stand-ins fail for versions not selected) nor bring
# venv (Debian packages it apart): the first candidate that proves itself is taken.
$(VENV)/bin/pip:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
		"$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
			2>/dev/null && exec "$$python" -m venv $(VENV); \
	done; \
	echo 'make: no Python 3.11, 3.12 or 3.13 with venv among: $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python).' \
		'Install one, or name it: make PYTHON=/path/to/python3.12 ...' >&2; exit 2
