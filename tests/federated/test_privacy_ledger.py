"""The ledger: what is charged stays charged, over crashes, processes and runs."""

import dataclasses
import subprocess
import sys
import time

import pytest

from primia_jax.config import PrivacyConfig
from primia_jax.errors import BudgetError, CheckpointError, ConfigError, StorageError
from primia_jax.federated import accounting, privacy_ledger
from primia_jax.federated.accounting import Release
from primia_jax.federated.privacy_ledger import Entry, Ledger

DELTA = 1e-5
ONE = Entry("training images", Release(4.0), {"round": 1})


def ledger_at(folder, budget=8.0):
    own = folder / "sites" / "h0"
    marks = privacy_ledger.marks_of(PrivacyConfig(), "h0", own)
    ledger = Ledger(own / privacy_ledger.FILE, budget, DELTA, "h0", marks=marks)
    ledger.begin()
    return ledger


def test_what_is_charged_can_be_read_again(tmp_path):
    first = ledger_at(tmp_path)
    assert first.entries() == [] and first.spent() == (0.0, 0.0)
    first.charge([ONE, ONE], "round 1")
    first.charge([ONE], "round 2")
    again = ledger_at(tmp_path)
    assert again.entries() == [ONE, ONE, ONE]
    assert again.spent() == accounting.epsilon([Release(4.0, 1.0, 3)], DELTA)


def test_groups_of_other_records_do_not_add_up(tmp_path):
    ledger = ledger_at(tmp_path)
    other = Entry("validation images", Release(3.0))
    ledger.charge([ONE, other], "round 1")
    assert ledger.spent() == accounting.epsilon([Release(3.0)], DELTA)


@pytest.mark.parametrize(
    ("groups", "worst"),
    [
        (["training images", "hospital"], [0, 1]),
        (["training images", "validation images", "hospital"], [1, 2]),
        (["hospital", "hospital"], [0, 1]),
    ],
)
def test_what_is_of_the_whole_hospital_counts_for_every_image(groups, worst):
    """As where runs that protect images and runs that protect hospitals share a ledger."""
    entries = [Entry(group, Release(4.0 - i / 2)) for i, group in enumerate(groups)]
    composed = accounting.by_pld([entries[i].release for i in worst], DELTA)
    assert privacy_ledger.largest_epsilon(entries, DELTA) == composed


def test_groups_of_different_splits_add_up(tmp_path):
    """An image may have been trained on in one run and validated on in the other."""
    ledger = ledger_at(tmp_path)
    one = Entry("training images", Release(4.0), split="a")
    other = Entry("validation images", Release(3.0), split="b")
    ledger.charge([one, Entry("validation images", Release(4.0), split="a")], "a run")
    assert ledger.spent() == accounting.epsilon([Release(4.0)], DELTA)
    ledger.charge([other], "a run with another split")
    assert ledger.entries()[-1] == other
    everything = [Release(4.0, 1.0, 2), Release(3.0)]
    assert ledger.spent() == accounting.epsilon(everything, DELTA)


def test_a_lost_ledger_is_not_taken_for_an_empty_one(tmp_path):
    """What was spent would be forgotten."""
    ledger = ledger_at(tmp_path)
    ledger.charge([ONE], "round 1")
    ledger.path.unlink()
    for action in (
        ledger.entries, ledger.spent, lambda: ledger.check_kept(0),
        lambda: ledger.charge([ONE], "round 2"), lambda: ledger.check([ONE], "round 2"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=r"h0: there is no privacy ledger /.*restore"):
            action()
    assert not ledger.path.exists()


def test_a_ledger_that_lacks_a_trained_round_is_named(tmp_path):
    """As an older copy of it does."""
    ledger = ledger_at(tmp_path)
    ledger.check_kept(0)
    ledger.charge([ONE], "round 1")
    ledger.begin()  # makes no difference to one that is there
    ledger.check_kept(1)
    with pytest.raises(CheckpointError, match=r"h0 trained round 2, of which its .*holds nothing"):
        ledger.check_kept(2)


def test_a_run_that_had_a_ledger_does_not_make_another(tmp_path):
    """It may have crashed in its first round, after its release and before its first checkpoint."""
    ledger = ledger_at(tmp_path)
    ledger.charge([ONE], "round 1")
    ledger.path.unlink()
    with pytest.raises(CheckpointError, match=r"h0: there is no privacy ledger /.*restore"):
        ledger_at(tmp_path)
    assert not ledger.path.exists()


@pytest.mark.parametrize("kept", [0, 1])
def test_an_older_copy_of_a_ledger_is_not_taken_for_the_whole(tmp_path, kept):
    """At the beginning of a run, and at each charge: what the others cost would be forgotten."""
    ledger = ledger_at(tmp_path)
    old = [b""]
    for number in (1, 1, 2):  # round 1 twice: no count of rounds tells of the second
        ledger.charge([dataclasses.replace(ONE, about={"round": number})], f"round {number}")
        old.append(ledger.path.read_bytes())
    ledger.check_whole()
    for content in (old[kept], old[3][: len(old[2])], old[3].replace(b"4.0", b"9.0", 1)):
        ledger.path.write_bytes(content)
        for action in (ledger.check_whole, lambda: ledger.charge([ONE], "x"), ledger.begin):
            with pytest.raises(CheckpointError, match=r"h0: .*as an older copy does.*restore"):
                action()
        assert ledger.path.read_bytes() == content
    ledger.path.write_bytes(old[3])
    ledger.charge([ONE], "round 3")
    assert len(ledger_at(tmp_path).entries()) == 4


def test_a_damaged_mark_is_named(tmp_path):
    ledger = ledger_at(tmp_path)
    for text in ("[]", "{}", "", '{"bytes": "x", "digest": ""}'):
        ledger.marks[0].write_text(text)
        with pytest.raises(CheckpointError, match=r"privacy_ledger.begun"):
            ledger.check_whole()


def test_a_mark_that_cannot_be_written_releases_nothing(tmp_path):
    ledger = ledger_at(tmp_path)
    (tmp_path / "no_folder").touch()
    full = dataclasses.replace(ledger, marks=(*ledger.marks, tmp_path / "no_folder" / "mark"))
    with pytest.raises(StorageError, match="no_folder"):
        full.charge([ONE], "round 1")
    ledger.check_whole()


def test_releases_that_protect_images_say_nothing_of_patients(tmp_path):
    """The reverse holds: a patient's ε bounds that of each of its images."""
    ledger = ledger_at(tmp_path)
    patient = dataclasses.replace(ONE, unit="patient")
    ledger.charge([patient], "round 1")
    by_patient = dataclasses.replace(ledger, unit="patient")
    by_patient.charge([patient, Entry("hospital", Release(9.0))], "round 2")
    assert ledger.spent() == by_patient.spent()
    ledger.charge([ONE], "round 3")
    for action in (by_patient.spent, lambda: by_patient.charge([patient], "round 4")):
        with pytest.raises(ConfigError, match="protect single images") as refusal:
            action()
        assert "\n" not in str(refusal.value)
    assert len(ledger.entries()) == 4


@pytest.mark.parametrize("facts", ['"steps": 0', '"steps": -3', '"unit": "nobody"'])
def test_a_line_that_would_lower_the_cost_is_damage(tmp_path, facts):
    ledger = ledger_at(tmp_path)
    line = ONE.line().decode().rstrip("}\n")
    ledger.path.write_text(f"{line}}}, {facts}}}\n")
    with pytest.raises(CheckpointError, match="damaged in line 1"):
        ledger.spent()


def test_beyond_the_budget_nothing_is_charged(tmp_path):
    ledger = ledger_at(tmp_path, budget=2.0)
    allowed = 0
    with pytest.raises(BudgetError) as refusal:
        for number in range(100):
            ledger.charge([ONE], f"round {number}")
            allowed += 1
    spent = ledger.spent().pld
    more = accounting.by_pld([Release(4.0, 1.0, allowed + 1)], DELTA)
    assert spent <= 2.0 < more
    assert len(ledger.entries()) == allowed > 0
    text = str(refusal.value)
    assert "\n" not in text and f"h0: round {allowed}" in text
    assert f"{more:.3f}" in text and f"{spent:.3f}" in text and "--mode=evaluate" in text


def test_checking_charges_nothing(tmp_path):
    ledger = ledger_at(tmp_path, budget=1e-3)
    with pytest.raises(BudgetError):
        ledger.check([ONE], "round 1")
    ledger_at(tmp_path).check([ONE], "round 1")
    assert ledger.entries() == []


@pytest.mark.parametrize("torn", [b'{"group": "tr', b"{", b"\xff\xfe"])
def test_a_line_cut_short_was_never_released(tmp_path, torn):
    """A charge is on disk before a release, so a torn last line stands for none."""
    ledger = ledger_at(tmp_path)
    ledger.charge([ONE], "round 1")
    with open(ledger.path, "ab") as file:
        file.write(torn)
    assert ledger.entries() == [ONE]
    ledger.charge([ONE], "round 2")
    assert ledger.entries() == [ONE, ONE]


@pytest.mark.parametrize(
    "line", [b"nonsense", b"{}", b'{"group": "g", "noise_multiplier": 0, "sampling_rate": 1, '
             b'"steps": 1, "about": {}}'],
)  # fmt: skip
def test_damage_is_named_and_nothing_goes_on(tmp_path, line):
    ledger = ledger_at(tmp_path)
    ledger.charge([ONE], "round 1")
    content = ledger.path.read_bytes()
    ledger.path.write_bytes(line + b"\n" + content)
    for action in (ledger.entries, lambda: ledger.charge([ONE], "round 2")):
        with pytest.raises(CheckpointError, match="damaged in line 1"):
            action()
    assert ledger.path.read_bytes() == line + b"\n" + content


def test_a_full_disk_charges_nothing_and_says_so(tmp_path, monkeypatch):
    ledger = ledger_at(tmp_path)
    ledger.charge([ONE], "round 1")
    monkeypatch.setattr(privacy_ledger.os, "fsync", _full)
    with pytest.raises(StorageError, match=r"No space left.*nothing is released"):
        ledger.charge([ONE], "round 2")
    monkeypatch.undo()
    assert ledger.entries() == [ONE]


def _full(descriptor):
    raise OSError(28, "No space left on device")


_CHARGING = """
import pathlib, sys
from primia_jax.federated.accounting import Release
from primia_jax.federated.privacy_ledger import Entry, Ledger
ledger = Ledger(pathlib.Path(sys.argv[1]), 1e9, 1e-5, "h0")
for number in range(int(sys.argv[2])):
    ledger.charge([Entry("training images", Release(50.0), {"round": number})], "x")
"""


def charging(path, count):
    """A process that charges `count` times."""
    return subprocess.Popen([sys.executable, "-c", _CHARGING, str(path), str(count)])


def test_processes_that_share_a_ledger_lose_no_charge(tmp_path):
    ledger = ledger_at(tmp_path)
    for process in [charging(ledger.path, 5) for _ in range(3)]:
        assert process.wait() == 0
    rounds = [entry.about["round"] for entry in ledger.entries()]
    assert sorted(rounds) == sorted(3 * [0, 1, 2, 3, 4])


def test_a_kill_at_any_moment_leaves_a_ledger_that_can_be_read(tmp_path):
    ledger = ledger_at(tmp_path, budget=1e9)
    process = charging(ledger.path, 10_000)
    while len(ledger.entries()) < 3:
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = len(ledger.entries())
    ledger.charge([ONE], "after the kill")
    assert ledger.entries()[-1] == ONE and len(ledger.entries()) == before + 1
