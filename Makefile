# make help lists the targets. Every target sets up .venv itself when it is missing or out of date.
PY      ?= python3
PROFILE ?= auto
VENV    := .venv
PYTHON  := $(VENV)/bin/python
STAMP   := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

empty :=
comma := ,
# "rte mrpc" and "rte,mrpc" are the same list; a variable that is not set is not handed over.
list  = $(if $(strip $($(1))),$(2)=$(subst $(empty) $(empty),$(comma),$(strip $($(1)))))
path  = $(if $(strip $($(1))),'$(2)=$(strip $($(1)))')
CHOICE = $(call list,TASKS,tasks) $(call list,METHODS,methods) $(call list,BACKBONES,backbones) \
         $(call list,SEEDS,seeds) $(call path,DATA_DIR,data_dir) $(call path,RESULTS_DIR,results_dir)

# With PY named by the caller, a .venv of another Python is made again.
ifneq ($(origin PY),file)
OTHER := $(shell test "$$($(PYTHON) -V 2>&1)" = "$$($(PY) -V 2>&1)" || echo yes)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce-glue reproduce-superglue test test-gpu soak tables params methods claims plan submit bench ntk ablations gpu-report lint FORCE

help: ## list the targets
	@echo 'usage: make TARGET [VARIABLE=value ...]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  PROFILE=auto|mini|paper   which grid; auto says which one it took and why'
	@echo '  TASKS= METHODS= BACKBONES= SEEDS=   part of the grid, as in TASKS=rte,mrpc SEEDS=0,1,2; METHODS=all: every one'
	@echo '  DATA_DIR=     folder with the official data files; without it, see the README'
	@echo '  RESULTS_DIR=  where records and tables go (default results/<profile>)'
	@echo '  ARGS=         more overrides, as in ARGS="training.max_steps=50"'
	@echo '  PY=           the Python to set up with (3.11 to 3.13; default python3)'

reproduce-glue: $(STAMP) ## the GLUE sweep of the chosen profile, then its tables, figures and page
	$(PYTHON) -m scripts.reproduce suite=glue profile=$(PROFILE) $(strip $(CHOICE) $(ARGS))

reproduce-superglue: $(STAMP) ## the same for SuperGLUE
	$(PYTHON) -m scripts.reproduce suite=superglue profile=$(PROFILE) $(strip $(CHOICE) $(ARGS))

# Two workers of one thread each; nothing may wait on a network.
test: export OMP_NUM_THREADS := 1
test: export TOKENIZERS_PARALLELISM := false
test: export HF_HUB_OFFLINE := 1
test: export HF_DATASETS_OFFLINE := 1
test: export WANDB_MODE := disabled
test: $(STAMP) ## the whole test suite, without a network
	$(PYTHON) -m pytest -n 2 --dist loadfile

# On the GPU's own torch; one process, so that tests do not share its memory.
test-gpu: export HF_HUB_OFFLINE := 1
test-gpu: export WANDB_MODE := disabled
test-gpu: $(STAMP) ## the tests that need a CUDA GPU; without one it says so
	$(PYTHON) -m pytest -m gpu -rs

soak: export OMP_NUM_THREADS := 1
soak: $(STAMP) ## a small sweep killed 500 times, which has to end as one that never was
	$(PYTHON) -m tests.soak kills=500 $(ARGS)

tables: $(STAMP) ## every table, figure and report page again, from the records alone
	$(PYTHON) -m scripts.tables $(strip $(if $(strip $(RESULTS_DIR)),$(call path,RESULTS_DIR,results_dir),\
	  $(if $(filter-out auto,$(PROFILE)),'results_dir=results/$(PROFILE)')) $(ARGS))

params: $(STAMP) ## parameter counts of every backbone and the paper's methods, from configs alone
	HF_HUB_OFFLINE=1 $(PYTHON) -m scripts.params $(strip $(call list,BACKBONES,backbones) \
	  $(call list,METHODS,methods) $(call path,RESULTS_DIR,results_dir) $(ARGS))

methods: $(STAMP) ## every method on every family, tried on tiny models: what works, what it trains, where its rate is from
	HF_HUB_OFFLINE=1 $(PYTHON) -m scripts.methods $(strip $(call list,METHODS,methods) \
	  $(call path,RESULTS_DIR,results_dir) $(ARGS))

claims: $(STAMP) ## the claims ledger: each claim, its source, our measurement, the verdict
	HF_HUB_OFFLINE=1 $(PYTHON) -m scripts.claims $(strip $(call path,RESULTS_DIR,results_dir) $(ARGS))

plan: $(STAMP) ## the cells of the sweep: done, failed, to do, and the time left
	$(PYTHON) -m scripts.plan suite=glue profile=$(PROFILE) $(strip $(CHOICE) $(ARGS))

submit: $(STAMP) ## prediction files for the GLUE and SuperGLUE servers, zipped, from finished runs
	$(PYTHON) -m scripts.submit $(strip $(if $(strip $(RESULTS_DIR)),$(call path,RESULTS_DIR,results_dir),\
	  $(if $(filter-out auto,$(PROFILE)),'results_dir=results/$(PROFILE)')) $(call list,TASKS,tasks) \
	  $(call list,METHODS,methods) $(call list,BACKBONES,backbones) $(call list,SEEDS,seeds) \
	  $(call path,DATA_DIR,data_dir) $(ARGS))

bench: $(STAMP) ## speed and memory of a training step against the peers, in results/bench
	HF_HUB_OFFLINE=1 $(PYTHON) -m scripts.bench $(strip $(if $(strip $(RESULTS_DIR)),$(call path,RESULTS_DIR,out)) $(ARGS))

# Both take part of the grid (TASKS= BACKBONES= SEEDS=, ntk METHODS= too) and, with DATA_DIR=, the real rows.
ntk: $(STAMP) ## tangent kernels against full fine-tuning's, with random controls
	HF_HUB_OFFLINE=1 $(PYTHON) -m scripts.ntk $(strip $(CHOICE) $(ARGS))

ablations: $(STAMP) ## degree, position, vectors, start, head, decay; steps to a score, time and memory
	HF_HUB_OFFLINE=1 $(PYTHON) -m scripts.ablations $(strip $(call list,TASKS,tasks) \
	  $(call list,BACKBONES,backbones) $(call list,SEEDS,seeds) $(call path,DATA_DIR,data_dir) \
	  $(call path,RESULTS_DIR,results_dir) $(ARGS))

gpu-report: $(STAMP) ## on a GPU: steps of large models, then MiniLM on the files of DATA_DIR; resumable
	HF_HUB_OFFLINE=1 $(PYTHON) -m scripts.gpu_report $(strip $(call path,DATA_DIR,data_dir) \
	  $(if $(strip $(RESULTS_DIR)),$(call path,RESULTS_DIR,out)) $(ARGS))

lint: $(STAMP) ## ruff (format and lint) and mypy
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

# The stamp is written last: an interrupted installation starts again.
$(STAMP): pyproject.toml requirements.lock $(if $(OTHER),FORCE)
	@$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo \
	  "Python 3.11, 3.12 or 3.13 is needed; '$(PY)' is: $$($(PY) -V 2>&1). Type: make PY=python3.12 $(or $(MAKECMDGOALS),help)" >&2; \
	  exit 2; }
	@echo 'setting up $(VENV): a few minutes, once'
	@rm -f $@
	$(PY) -m venv $(if $(OTHER),--clear) $(VENV)
	$(PYTHON) -m pip install -r requirements.lock
	$(PYTHON) -m pip install --no-deps --no-build-isolation -e .
	@touch $@
