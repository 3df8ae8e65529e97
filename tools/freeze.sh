#!/bin/sh
# Write constraints.txt anew: the newest versions that pip resolves for running, testing and linting. Needs .venv.
set -eu
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
.venv/bin/python -m venv "$fresh"
"$fresh/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[test,lint]'
{
    echo "# Exact versions for running, testing and linting; written by tools/freeze.sh."
    "$fresh/bin/python" -m pip freeze --exclude-editable
} > constraints.txt
