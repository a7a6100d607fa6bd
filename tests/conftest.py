"""One thread for XLA in every process, so that runs under all drivers agree to the bit."""

import gc
import pathlib

from primia_jax import environment

environment.set_up_process(threads=1)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from statsmodels.stats import multitest  # noqa: E402

from primia_jax.runtime import ray_driver  # noqa: E402

# No deadlines: a first call compiles. Derandomised: a failure must come again on the next run.
hypothesis.settings.register_profile("primia", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("primia")


@pytest.fixture(scope="session")
def ray_cluster():
    """An embedded Ray, started once for all tests that need it."""
    with ray_driver.cluster(None):
        yield


@pytest.fixture(scope="session", autouse=True)
def holm_leaves_garbage():
    """statsmodels collects garbage in every call: seconds, beside all that the tests compiled."""
    multipletests = multitest.multipletests

    def called(*args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gc, "collect", lambda *_: 0)
            return multipletests(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multitest, "multipletests", called)
        yield


def pytest_addoption(parser):
    parser.addoption("--faults", help="file that the table of faults and outcomes is written to")


def pytest_collection_modifyitems(items):
    for item in items:
        for marker in item.iter_markers("fault"):
            item.user_properties.append(("fault", marker.args))


def pytest_terminal_summary(terminalreporter, config):
    """Writes the table of faults, a row for every test marked `fault`, if all of them ran."""
    path = config.getoption("--faults")
    if not path:
        return
    reports = [
        report
        for outcome in ("passed", "failed", "error")
        for report in terminalreporter.stats.get(outcome, ())
        if report.when == "call" or outcome != "passed"
    ]
    rows = sorted(
        (*value, "holds" if report.passed else "**fails**")
        for report in reports
        for name, value in report.user_properties
        if name == "fault"
    )
    table = "".join(f"| {fault} | {outcome} | {found} |\n" for fault, outcome, found in rows)
    pathlib.Path(path).write_text(
        "# Faults and what a training comes to\n\n"
        "Written by `make test-all`: each row is a test that brings the fault about.\n\n"
        "| fault | outcome | tested |\n| --- | --- | --- |\n" + table
    )
