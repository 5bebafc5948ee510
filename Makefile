# Targets: setup, demo, test, faults, gpu, versions, coverage, check, bench, reference. Needs python3 (3.11 or newer) and a package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made again only when what it was made from changes; a second run re-uses the environment as it is.
STAMP := $(VENV)/.installed

.PHONY: setup demo test faults gpu versions coverage check bench reference clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"dialogkit needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.12 $(MAKECMDGOALS)" or 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/dialogkit train custom-pico --preset talk --budget 150s
	printf '%s\n' 'Hello, my name is Emma.' 'What is my name?' 'What is the capital of France?' 'And of Japan?' \
		/reset 'What is 3 plus 4?' 'Which day comes after Monday?' 'Tell me a joke.' 'Thank you, goodbye!' \
		| $(BIN)/dialogkit chat

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: setup
	$(BIN)/python -m pytest -m faults

# What holds on the GPUs of this machine, in at most 15 minutes: a line for each claim, and JSON beside.
gpu: setup
	$(BIN)/python benchmarks/gpu.py --json build/gpu.json

# The suite with the oldest and the newest transformers that pyproject.toml allows, each in an environment of its own.
# The newest is left out where it is the one of constraints.txt, which `make test` uses.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
versions:
	mkdir -p build
	grep -vE '^(transformers|huggingface.hub|peft)==' constraints.txt >build/constraints.txt
	for version in "==$(OLDEST)" ""; do \
		$(PYTHON) -m venv --clear build/versions && \
		build/versions/bin/python -m pip install --quiet --disable-pip-version-check \
			--constraint build/constraints.txt --editable '.[dev]' "transformers$$version" && \
		build/versions/bin/python -m pip freeze | grep '^transformers==' >build/version || exit 1; \
		cat build/version; \
		grep -qxFf build/version constraints.txt || \
		build/versions/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder || exit 1; \
	done

# The statements that no test of the suite runs, in build/coverage/report.txt; takes three times as long as the suite.
coverage: setup
	rm -rf build/coverage
	mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --show-missing >build/coverage/report.txt
	@tail -n 1 build/coverage/report.txt

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The short benchmarks; each writes its figures beside as JSON.
bench: setup
	mkdir -p build
	$(BIN)/python benchmarks/startup.py --rounds 3 --json build/startup.json
	$(BIN)/python benchmarks/training_speed.py custom-tiny --arms dialogkit plain expert --rounds 3 \
		--json build/training.json
	$(BIN)/python benchmarks/generation_speed.py custom-tiny --rounds 3 --json build/generation.json

# The pages of all commands and settings in docs/reference, from the code.
reference: setup
	$(BIN)/python docs/build_reference.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
