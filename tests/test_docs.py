"""Documentation names tests as evidence: each of them exists."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_every_test_that_the_docs_name_exists():
    tests = {path: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    names = {path.name for path in tests}
    defined = {name for text in tests.values() for name in re.findall(r"def (test_\w+)", text)}
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"\b(test_\w+(?:\.py)?)", page.read_text("utf-8")):
            known = names if name.endswith(".py") else defined | {n[:-3] for n in names}
            assert name in known or name.startswith("test_path"), f"{page.name}: {name}"
