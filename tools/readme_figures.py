"""Run the README's first program as it stands; write what it prints and draws into README and docs/images."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "galaxies.png"
OUTPUT = re.compile(r"(<!-- output:[^>]*-->\n```text\n).*?(```\n<!-- end of output -->)", re.DOTALL)


def main() -> None:
    text = README.read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert program is not None
    scope: dict[str, object] = {"__name__": "readme"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program.group(1), str(README), "exec"), scope)
    said = "\n".join(line.rstrip() for line in printed.getvalue().rstrip().splitlines()) + "\n"
    README.write_text(OUTPUT.sub(lambda found: found[1] + said + found[2], text), encoding="utf-8")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    scope["fit"].plot.density().savefig(PICTURE, dpi=110, metadata={"Software": None})  # type: ignore[attr-defined]
    print(f"wrote {README.name} and {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
