#!/bin/sh
# Set up .venv: `tools/setup.sh run` for the command alone, `tools/setup.sh dev` for tests and linters as well,
# `tools/setup.sh bench` with the peers of the benchmarks.
# Takes the first Python >= 3.12 that really runs and can make environments, else uv.
set -eu
kind=${1:-dev}
venv=.venv
case $kind in
    run) target=.; what="marginalia" ;;
    dev) target='.[test,lint]'; what="marginalia with its test and lint tools" ;;
    bench) target='.[bench]'; what="marginalia with the libraries that it is measured against" ;;
    *) echo "usage: tools/setup.sh run|dev|bench" >&2; exit 2 ;;
esac

# A name on the PATH may be a shim that fails, too old, or a Python without venv: only running it tells.
works() {
    "$1" -c 'import sys; sys.version_info >= (3, 12) or sys.exit(1)' >/dev/null 2>&1 </dev/null
}
makes_environments() {
    works "$1" && "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 </dev/null
}
find_python() {
    for name in python3 python3.12 python3.13 python3.14 python3.15 python3.16 python3.17 python3.18 python3.19 python
    do
        if makes_environments "$name"; then echo "$name"; return; fi
    done
}

if ! works $venv/bin/python; then
    rm -rf $venv
    python=$(find_python)
    if [ -n "$python" ]; then
        echo "Making .venv with $python ($("$python" -c 'import platform; print(platform.python_version())'))."
        "$python" -m venv $venv
    elif uv --version >/dev/null 2>&1; then
        echo "Making .venv with uv."
        uv venv --quiet --python '>=3.12' $venv
    else
        echo "marginalia needs Python 3.12 or newer with its venv module, or uv: neither was found on the PATH." >&2
        exit 1
    fi
fi

echo "Installing $what into .venv (a minute or two the first time)."
if $venv/bin/python -m pip --version >/dev/null 2>&1; then
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$target"
else
    uv pip install --quiet --python $venv/bin/python -c constraints.txt -e "$target"
fi

touch $venv/.installed-run
if [ "$kind" != run ]; then touch "$venv/.installed-$kind"; fi
