"""Progress: plain, greppable lines in a pipe; one live table on a terminal."""

import io
import re

import pytest

from primia_jax.reporting.console import Console, format_bytes, format_duration, total_memory

SITES = ["hospital_0", "hospital_1"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """The variables by which terminals are described."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def lines_of_round(r: int, best: bool = False) -> list[dict]:
    lines = [
        {
            "round": r,
            "site": site,
            "loss": 0.4 + 0.1 * i,
            "validation_loss": 0.5,
            "validation_accuracy": 0.81,
            "samples": 100 * (i + 1),
            "seconds": 10.0 + i,
            "bytes_sent": 45e6,
            "stopped": i == 1,
        }
        for i, site in enumerate(SITES)
    ]
    summary = {
        "score": {"name": "MCC", "value": 0.714},
        "seconds": 12.3,
        "bytes_sent": 90e6,
        "best": best,
    }
    return [*lines, {"round": r, "site": "all", **summary}]


def test_a_pipe_gets_one_line_a_round():
    stream = io.StringIO()
    with Console(20, SITES, stream) as console:
        console.message("reading images")
        console.stage("training")
        console.round(lines_of_round(1))
        console.round(lines_of_round(2, best=True))
    assert stream.getvalue().splitlines() == [
        "reading images",
        "round 1/20  loss 0.467  val MCC 0.71  12.3 s  ETA 4 min  sent 90 MB",
        "round 2/20  loss 0.467  val MCC 0.71  12.3 s  ETA 4 min  sent 90 MB  best",
    ]


def test_absent_values_are_dashes_and_sites_stand_in_for_the_summary():
    stream = io.StringIO()
    console = Console(3, SITES, stream)
    console.round([])
    console.round([{"round": 2, "site": "hospital_0", "loss": None, "validation": None}])
    console.round(lines_of_round(3)[:2])
    assert stream.getvalue().splitlines() == [
        "round 1/3  loss -  val score -  - s  ETA -  sent -",
        "round 2/3  loss -  val score -  - s  ETA -  sent -",
        "round 3/3  loss 0.467  val score -  11.0 s  ETA 0 s  sent 90 MB",
    ]


def test_the_slow_first_round_does_not_spoil_the_estimate():
    stream = io.StringIO()
    console = Console(10, SITES, stream)
    for r, seconds in enumerate((100.0, 2.0, 2.0), start=1):
        console.round([{"round": r, "site": "all", "seconds": seconds}])
    assert "ETA 15 min" in stream.getvalue().splitlines()[0]
    assert "ETA 14 s" in stream.getvalue().splitlines()[-1]


def test_a_terminal_gets_a_table():
    stream = Terminal()
    with Console(20, SITES, stream) as console:
        console.stage("training")
        console.round(lines_of_round(7))
        console.message("a message with [brackets]")
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    last = screen[screen.rindex("round 7/20") :]
    assert "a message with [brackets]" in screen
    assert "validation MCC 0.714" in last
    row = next(line for line in last.splitlines() if "hospital_0" in line)
    assert row.split() == [
        "hospital_0",
        "finished",
        "0.400",
        "0.500",
        "0.810",
        "100",
        "45",
        "MB",
        "-",
    ]
    assert max(map(len, last.splitlines())) <= 80
    assert "RSS in all" not in last
    assert "stopped early" in last and "ETA 3 min" in last and "sent in all 90 MB" in last
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_memory_and_privacy_of_a_site_where_they_are_known():
    """Two sites in one process hold its memory once."""
    stream = Terminal()
    lines = lines_of_round(1)
    for line in lines[:2]:
        line.update(rss_bytes=300e6, process="host:7", epsilon=1.2345)
    with Console(20, SITES, stream) as console:
        console.round(lines)
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    last = screen[screen.rindex("round 1/20") :]
    row = next(line for line in last.splitlines() if "hospital_1" in line)
    assert row.split()[-5:] == ["45", "MB", "300", "MB", "1.23"]
    assert "RSS in all 300 MB" in last
    lines[1]["process"] = "host:8"
    del lines[0]["epsilon"]
    assert total_memory(lines) == 600e6
    assert total_memory([{"site": "hospital_0"}]) is None


def test_an_error_leaves_the_terminal_usable_and_passes_through():
    stream = Terminal()
    with pytest.raises(RuntimeError, match="lost"), Console(2, SITES, stream):
        raise RuntimeError("lost a hospital")
    assert "\x1b[?25h" in stream.getvalue()
    assert "stopped" in stream.getvalue()


def test_many_sites_fit_the_screen():
    stream = Terminal()
    with Console(2, [f"hospital_{i}" for i in range(200)], stream):
        pass
    assert "and 180 more" in stream.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Console(2, SITES, stream) as console:
        console.round(lines_of_round(1))
    assert "\x1b" not in stream.getvalue()


def test_quantities_read_well():
    sizes = [0, 999, 1000, 9_949_999, 10e6, 999.4e6, 999.6e6, 3.2e15]
    assert [format_bytes(s) for s in sizes] == [
        *("0 B", "999 B", "1.0 kB", "9.9 MB", "10 MB", "999 MB", "1.0 GB", "3200 TB")
    ]
    times = [0, 48.2, 99, 100, 180, 7500]
    assert [format_duration(t) for t in times] == [
        *("0 s", "48 s", "99 s", "2 min", "3 min", "2 h 05 min")
    ]
    assert format_bytes(None) == format_duration(None) == "-"
