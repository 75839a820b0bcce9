#!/bin/sh
# Writes requirements/*.txt anew: every version with its hashes, and no address.
set -eu
cd "$(dirname "$0")/.."
lock() { .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header "$@"; }
lock pyproject.toml -o requirements/runtime.txt
lock pyproject.toml --group ops -o requirements/ops.txt
lock pyproject.toml --group dev -o requirements/dev.txt
lock pyproject.toml --group train -o requirements/train.txt
lock pyproject.toml --group bench -o requirements/bench.txt
lock pyproject.toml --group peers -o requirements/peers.txt
lock requirements/emulator.in -o requirements/emulator.txt
lock requirements/uv.in -o requirements/uv.txt
