# marginalia needs make and some Python 3.12 or newer (or uv). Everything is set up in .venv, once.
.DEFAULT_GOAL := help
.PHONY: help install demo test validate nightly calibrate bench lint clean

BIN := .venv/bin
SETUP := pyproject.toml constraints.txt tools/setup.sh
GALAXIES := src/marginalia/datasets/galaxies.csv

help:            ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

install: .venv/.installed-dev  ## set up .venv with the command, the tests' and the linters' packages

demo: .venv/.installed-run     ## fit three components to the galaxies; results in demo/
	$(BIN)/marginalia fit $(GALAXIES) --column velocity --components 3 --seed 1 --out demo

test: .venv/.installed-dev     ## run the tests (minutes)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --durations 30

validate: .venv/.installed-dev ## run the long checks against reference answers
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

nightly: .venv/.installed-dev  ## 10 000 random programs against brute force (hours)
	$(BIN)/python tests/properties/nightly.py --programs 10000

calibrate: .venv/.installed-dev  ## ranks of true values among draws, 200 data sets a method (half an hour)
	$(BIN)/python tests/calibration/calibrate.py --results build/calibration.jsonl --out docs/images/calibration.png

bench: .venv/.installed-bench  ## time beside the peers (hours; BENCH="--only w1 --ours" for less: docs/benchmarks.md)
	$(BIN)/python -m benchmarks.run $(BENCH)

lint: .venv/.installed-dev     ## check style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

clean:           ## remove what was built, .venv included
	rm -rf .venv demo build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis

.venv/.installed-run: $(SETUP)
	@sh tools/setup.sh run

.venv/.installed-dev: $(SETUP)
	@sh tools/setup.sh dev

.venv/.installed-bench: $(SETUP)
	@sh tools/setup.sh bench
