# The verbs of Threefold. Each sets up what it needs; the first run of one takes a minute or two.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo up test test-long check bench bench-peers lock clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: ## records through all three doors on an embedded AWS, every answer compared
	@$(PYTHON) ops/setup.py ops emulator
	@$(BIN)/threefold demo

up: ## the same system in the foreground, until Ctrl-C
	@$(PYTHON) ops/setup.py ops emulator
	@$(BIN)/threefold up

test: ## all tests but the long ones, the embedded AWS included
	@$(PYTHON) ops/setup.py dev emulator
	@$(BIN)/python -m pytest

test-long: ## workers killed, a million rows: some minutes, on an embedded AWS
	@$(PYTHON) ops/setup.py dev emulator
	@$(BIN)/python -m pytest tests/long

check: ## formatting, lint, types and the house's import rules
	@$(PYTHON) ops/setup.py dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: ## the figures of docs/performance.md, measured here
	@$(PYTHON) ops/setup.py bench emulator
	@.threefold/bench/bin/python -m benchmarks

bench-peers: ## the same prediction through other servers, in process
	@$(PYTHON) ops/setup.py peers
	@.threefold/peers/bin/python -m benchmarks.peers

lock: ## write requirements/*.txt anew
	@$(PYTHON) ops/setup.py dev
	@ops/lock.sh

clean: ## remove all that the verbs made
	rm -rf .venv .threefold
