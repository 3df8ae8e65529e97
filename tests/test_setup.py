"""tools/setup.sh: which Python it takes where names on the PATH lie, and what it says if there is none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tools" / "setup.sh"

# Stands for a Python: $1 is -c or -m; the words after it say what is asked for.
PYTHON = """#!/bin/sh
name=$(basename "$0")
case "$1 $2" in
    *version_info*) {new_enough} ;;
    *ensurepip*) {has_venv} ;;
    *python_version*) echo 3.99 ;;
    "-m venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    "-m pip") echo "$name pip $*" >>calls ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >>calls
case "$1" in
    venv) mkdir -p .venv/bin; printf '#!/bin/sh\\ncase "$*" in *pip*) exit 1;; esac\\n' >.venv/bin/python
        chmod +x .venv/bin/python ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A machine with nothing but a shell; `add` puts programs on its PATH, `run` runs the script there."""
    shelf, project = tmp_path / "bin", tmp_path / "my project"
    shelf.mkdir()
    project.mkdir()
    for name in ["sh", "rm", "touch", "mkdir", "cp", "chmod", "basename"]:
        (shelf / name).symlink_to(str(shutil.which(name)))

    class Machine:
        folder = project

        def add(self, name, script):
            (shelf / name).write_text(script)
            (shelf / name).chmod(0o755)

        def run(self, kind="run"):
            return subprocess.run(
                ["sh", SCRIPT, kind],
                cwd=project,
                env={"PATH": str(shelf)},
                capture_output=True,
                text=True,
                check=False,
            )

        @property
        def calls(self):
            return (project / "calls").read_text()

    return Machine()


def python(new_enough=True, has_venv=True):
    return PYTHON.format(new_enough=":" if new_enough else "exit 1", has_venv=":" if has_venv else "exit 1")


BROKEN_SHIM = "#!/bin/sh\necho 'shim: command not found' >&2\nexit 127\n"


def test_without_a_python_one_sentence_says_so(machine):
    machine.add("python3", BROKEN_SHIM)
    machine.add("python", python(new_enough=False))
    machine.add("python3.12", python(has_venv=False))
    done = machine.run()
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "marginalia needs Python 3.12 or newer with its venv module, or uv: neither was found on the PATH.\n"
    )
    assert not (machine.folder / ".venv").exists()


def test_a_name_that_lies_is_passed_over(machine):
    machine.add("python3", BROKEN_SHIM)
    machine.add("python3.12", python(has_venv=False))
    machine.add("python3.14", python())
    done = machine.run("dev")
    assert done.returncode == 0, done.stderr
    assert "Making .venv with python3.14 (3.99)." in done.stdout
    assert "-c constraints.txt -e .[test,lint]" in machine.calls
    assert {path.name for path in (machine.folder / ".venv").glob(".installed-*")} == {
        ".installed-run",
        ".installed-dev",
    }


def test_the_command_alone_needs_no_test_tools(machine):
    machine.add("python", python())
    done = machine.run("run")
    assert done.returncode == 0, done.stderr
    assert machine.calls.splitlines()[-1].endswith("-c constraints.txt -e .")
    assert [path.name for path in (machine.folder / ".venv").glob(".installed-*")] == [".installed-run"]


def test_uv_serves_where_there_is_no_python(machine):
    machine.add("python3", BROKEN_SHIM)
    machine.add("uv", UV)
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert machine.calls.splitlines()[-2:] == [
        "uv venv --quiet --python >=3.12 .venv",
        "uv pip install --quiet --python .venv/bin/python -c constraints.txt -e .",
    ]


def test_an_environment_that_no_longer_works_is_made_again(machine):
    machine.add("python3", python())
    (machine.folder / ".venv" / "bin").mkdir(parents=True)
    (machine.folder / ".venv" / "bin" / "python").symlink_to("/nonexistent/python3.12")
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert "Making .venv with python3 (3.99)." in done.stdout


def test_tests_that_share_something_run_on_one_worker(request):
    if not hasattr(request.config, "workerinput"):
        pytest.skip("no workers in this run")
    assert request.node.nodeid.endswith("@test_setup")
