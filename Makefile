# make demo   train, score, write and fill on text every Python carries; opens nothing, writes demo/report.html
# make test   lint, types, import contract, tests, wheel, README; what CI runs
# make lint   the first three of these
# make test-long  exact decoding against one token at a time on 4,000 random requests (half an hour)
# make test-gpu   what only runs on an NVIDIA GPU against the CPU (minutes; shapes unchecked, as the compiler needs)
# make test-crash  30 kills of a training run at random moments, resumed each time, against a run left alone (minutes)
# make results DATA=...  every experiment at small scale, into results/ and docs/results.md (many hours on 2 cores; resumes)
# make bench  speed of training steps and decoding on this machine
# make .venv  only the virtual environment

PYTHON ?= python3
BIN := .venv/bin

DATA ?= data
JOBS ?= 2

.PHONY: demo test test-long test-gpu test-crash results lint format bench wheel clean

.venv: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch .venv

demo: .venv
	$(BIN)/armd demo --out demo

test: lint
	$(BIN)/python -m pytest --numprocesses 2
	$(BIN)/python tests/check_wheel.py

test-long: .venv
	$(BIN)/python -m pytest tests/invariants/test_exact.py --hypothesis-profile=long --timeout=7200

test-gpu: .venv
	$(BIN)/python -m pytest tests/gpu --override-ini addopts= --numprocesses 4

test-crash: .venv
	OMP_NUM_THREADS=1 $(BIN)/python tests/crash.py --kills 30

results: .venv
	$(BIN)/armd reproduce all --data $(DATA) $(if $(SETS),--sets $(SETS)) $(if $(PUZZLES),--puzzles $(PUZZLES)) \
	    --out results --jobs $(JOBS) --page docs/results.md

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv
	$(BIN)/armd bench

clean:
	rm -rf .venv build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
