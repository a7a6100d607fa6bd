"""References to a user's own objects: what they name, and mistakes in one line."""

import sys

import pytest

from primia_jax.core import objects
from primia_jax.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "parts.py").write_text(
        "class Net:\n    @staticmethod\n    def small():\n        return 1\nNUMBER = 3\n"
    )
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit('two\\nlines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("parts", "broken", "leaves"):
        sys.modules.pop(name, None)


def test_a_reference_names_an_object_and_back(folder):
    net = objects.load("parts:Net", "here")
    assert objects.reference_to(net, "here") == "parts:Net"
    assert objects.load("parts:Net.small", "here")() == 1
    assert objects.reference_to("parts:Net", "here") == "parts:Net"


@pytest.mark.parametrize(
    ("reference", "message"),
    (
        ("absent:Net", r"no module 'absent' in process \d+ on .*PYTHONPATH there, or install it"),
        ("absent.deep:Net", "no module 'absent' in"),
        ("broken:Net", "import of 'broken' failed .*no_such_package"),
        ("leaves:Net", "import of 'leaves' failed .*SystemExit: two;"),
        ("parts:Nets", "module 'parts' .* has no 'Nets'"),
        ("parts:NUMBER", "is a int and cannot be called"),
        ("parts:", "write module:object"),
        ("parts:os.system('x')", "write module:object"),
        ("/tmp/parts.py:Net", "write module:object"),
    ),
)
def test_mistakes_in_one_line(folder, reference, message):
    with pytest.raises(ConfigError, match=rf"^config\.part = .*{message}") as caught:
        objects.load(reference, "config.part")
    assert "\n" not in str(caught.value)


def test_objects_that_other_processes_cannot_import_are_refused(folder, monkeypatch):
    def inner():
        pass

    with pytest.raises(ConfigError, match="top level of a module"):
        objects.reference_to(inner, "model")
    with pytest.raises(ConfigError, match="no name to import it by"):
        objects.reference_to(objects.load("parts:Net", "here")(), "model")
    script = type("Net", (), {"__module__": "__main__"})
    with pytest.raises(ConfigError, match="from __main__; define it at the top"):
        objects.reference_to(script, "model")
    other = type("Net", (), {"__module__": "parts"})
    with pytest.raises(ConfigError, match="parts:Net is another object"):
        objects.reference_to(other, "model")
