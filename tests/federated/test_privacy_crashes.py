"""Crashes of private trainings: the ledger never says less than what left the hospital.

What a crash leaves is what is on disk. One run is copied whenever a hospital's contribution is
about to leave it, and whenever a sum is about to be revealed or is kept: so a copy stands before,
between and after the sums of each round. From each copy the run goes on.
"""

import collections
import itertools
import shutil

import pytest
import tiny

from primia_jax.data import make_plan
from primia_jax.errors import CheckpointError
from primia_jax.federated import checkpoints, hospital_state, privacy
from primia_jax.federated.checkpoints import Progress
from primia_jax.federated.federation import Federation
from primia_jax.federated.makers import party_makers
from primia_jax.federated.owner_journal import OwnerJournal
from primia_jax.federated.privacy_ledger import FILE, Ledger, largest_epsilon
from primia_jax.federated.quantities import STATISTICS, UPDATE, VALIDATION
from primia_jax.runtime import LocalDriver

PRIVATE = tiny.merged(
    tiny.TINY,
    {
        "data": {"phantom": {"n_train": 40}},
        "federated": {"mode": "federated_secure", "hospitals": 2},
        "privacy": {"noise_multiplier": 3.0, "budget": 100.0, "missing_hospitals": 0},
    },
)
WHAT = {STATISTICS: "pixel statistics", UPDATE: "update", VALIDATION: "confusion matrix"}
DELTA = 1e-5


class Runs:
    """Runs that share the parties' images, and a note of all that left a hospital."""

    def __init__(self, monkeypatch, mode, **changes):
        self.config = tiny.config_with(tiny.merged(PRIVATE, {"privacy": {"mode": mode}}), **changes)
        plan = make_plan(self.config)
        self.names = tuple(site.site for site in plan.sites)
        driver = LocalDriver(party_makers(self.config, plan))
        self._states, self._makers = dict(driver.states), driver._makers
        self.released = collections.defaultdict(set)  # of a hospital: (what, round, its numbers)
        self.at_point = lambda: None
        contribute = hospital_state.Hospital.contribute

        def noted(state, quantity, make, *more, **options):
            def made():
                own = make()
                numbers = b"".join(values.tobytes() for values in own.values)
                what = WHAT[quantity.purpose], quantity.round
                self.released[state.name].add((*what, numbers))
                self.at_point()
                return own

            return contribute(state, quantity, made, *more, **options)

        monkeypatch.setattr(hospital_state.Hospital, "contribute", noted)
        for name in ("reveal", "store"):
            monkeypatch.setattr(OwnerJournal, name, self._then(getattr(OwnerJournal, name)))

    def _then(self, method):
        def and_copied(*arguments):
            method(*arguments)
            self.at_point()

        return and_copied

    def train(self, folder, absent=()):
        """Trains to the end from what is in `folder`, as `rounds.train_rounds` does."""
        driver = LocalDriver({})
        driver.states, driver._makers = dict(self._states), self._makers
        driver.missing = dict.fromkeys(absent, "its machine is not there")
        driver.revive = lambda name, timeout_s=0.0: False
        federation = Federation(driver, self.config, self.names, folder)
        done = Progress()
        if (federation.owner_folder / checkpoints.LATEST).exists():
            done = checkpoints.latest(federation.owner_folder)
        tiny.train(federation, first=done.round, save=True)
        return federation

    def copies(self, tmp_path):
        """(a copy, what had been released by then) of each point of an unbroken run."""
        folder, points = tmp_path / "whole", []
        folder.mkdir()

        def copy():
            target = tmp_path / f"crash_{len(points)}"
            shutil.copytree(folder, target)
            points.append((target, {name: set(own) for name, own in self.released.items()}))

        self.at_point = copy
        federation = self.train(folder)
        self.at_point = lambda: None
        return federation, points

    def check(self, folder, whole):
        """Compares what was released with the ledgers, in number and in ε."""
        mode = self.config.privacy.mode
        for name, released in self.released.items():
            entries = Ledger(folder / "sites" / name / FILE, 1e9, DELTA, name).entries()
            charged = collections.Counter(
                (entry.about["what"], entry.about.get("round")) for entry in entries
            )
            mechanisms = tiny.at(whole, name).guarantee.mechanisms
            made = collections.Counter((what, number) for what, number, _ in released)
            assert not made - charged, (name, made - charged)
            due = []
            for what, number, _ in released:
                if what == WHAT[STATISTICS]:
                    due += [entry for entry in entries if entry.about["what"] == what]
                elif what == WHAT[UPDATE]:
                    due += mechanisms.of_update(mode, number)
                else:
                    due += mechanisms.of_validation(mode, number)
            assert largest_epsilon(due, DELTA) <= largest_epsilon(entries, DELTA) + 1e-9


@pytest.mark.parametrize("mode", ["record", "client"])
@pytest.mark.fault(
    "the command is killed at any point of a private run, also between the two sums of a round",
    "--resume goes on; all that left a hospital is in its privacy ledger",
)
def test_no_crash_leaves_a_release_uncharged(monkeypatch, tmp_path, mode):
    runs = Runs(monkeypatch, mode)
    whole, points = runs.copies(tmp_path)
    runs.check(tmp_path / "whole", whole)
    sums = 4 + privacy.releases_statistics(runs.config)
    assert len(points) == sums * (len(runs.names) + 2)
    repeated = 0
    for folder, before in points:
        runs.released.clear()
        runs.released.update({name: set(own) for name, own in before.items()})
        runs.check(folder, whole)
        runs.train(folder)
        runs.check(folder, whole)
        repeated += any(len(own) > sums for own in runs.released.values())
        shutil.rmtree(folder)
    assert repeated  # sums that were begun and not revealed were made again, and charged again


@pytest.mark.fault(
    "a private run with drawn hospitals is killed, and a hospital is gone afterwards",
    "--resume goes on; a hospital's ledger holds the rounds that it was drawn for",
)
def test_hospitals_are_charged_for_the_rounds_that_they_are_in(monkeypatch, tmp_path):
    runs = Runs(
        monkeypatch,
        "record",
        federated={"hospitals": 4, "participation": 0.5, "quorum": 0.5},
        privacy={"missing_hospitals": 1},
    )
    whole, points = runs.copies(tmp_path)
    runs.check(tmp_path / "whole", whole)
    rounds_in = {name: {number for _, number, _ in own} for name, own in runs.released.items()}
    assert any(len(own) < runs.config.federated.rounds for own in rounds_in.values())
    for name in runs.names:
        entries = Ledger(tmp_path / "whole" / "sites" / name / FILE, 1e9, DELTA, name).entries()
        assert {entry.about.get("round") for entry in entries} - {None} <= rounds_in.get(
            name, set()
        )
    for (folder, before), absent in zip(points[1::3], itertools.cycle(runs.names)):
        runs.released.clear()
        runs.released.update({name: set(own) for name, own in before.items()})
        try:
            runs.train(folder, (absent,))
        except CheckpointError as error:  # a sum with this hospital may have been revealed
            assert absent in str(error) and "may have been revealed" in str(error)
        runs.check(folder, whole)
