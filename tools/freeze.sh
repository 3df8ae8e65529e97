#!/bin/sh
# Write constraints.txt anew: the newest versions that pip resolves for running, testing, linting and benchmarks. Needs .venv.
set -eu
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
.venv/bin/python -m venv "$fresh"
"$fresh/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[test,lint,bench]'
{
    echo "# Exact versions for running, testing, linting and the benchmarks' peers; written by tools/freeze.sh."
    "$fresh/bin/python" -m pip freeze --exclude-editable
} > constraints.txt
