"""Records of secure sums on disk: what they refuse, and what damage does to them."""

import resource

import numpy as np
import pytest

from primia_jax.errors import CheckpointError, ProtocolError, StorageError
from primia_jax.federated.aggregation import Total
from primia_jax.federated.hospital_journal import HospitalJournal
from primia_jax.federated.owner_journal import OwnerJournal
from primia_jax.federated.quantities import (
    UPDATE,
    VALIDATION,
    Announcement,
    Quantity,
    digest_of_names,
    digest_of_quantity,
)
from primia_jax.federated.sum_record import FILE, MARK

NAMES = ("a", "b", "c", "d")
ROUND_1, ROUND_2 = Quantity(UPDATE, 1, "m1"), Quantity(UPDATE, 2, "m2")
ROUND_0, OTHER = Quantity(UPDATE, 0, "m0"), ROUND_1._replace(model="x")


def total(weight=7):
    return Total((np.arange(3.0), np.zeros(0)), weight, np.asarray([1, 2]), (), NAMES, NAMES[:3])


def test_a_revealed_total_is_kept_and_never_summed_again(tmp_path):
    journal = OwnerJournal(tmp_path)
    announced, complete = journal.begin(ROUND_1, NAMES)
    assert not complete and announced.void == () and journal.total(ROUND_1) is None
    journal.reveal(announced.number, NAMES)
    journal.store(announced.number, total())
    again = OwnerJournal(tmp_path)
    kept = again.total(ROUND_1)
    assert kept is not None and kept[1] == 7 and kept[3:] == total()[3:]
    for left, right in zip((*kept.values, kept.counts), (*total().values, total().counts)):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(CheckpointError, match="update of round 1 was revealed"):
        again.begin(ROUND_1, NAMES[:3])


def test_totals_of_complete_rounds_go_and_those_rounds_are_not_trained_again(tmp_path):
    journal = OwnerJournal(tmp_path)
    for quantity in (ROUND_1, ROUND_2):
        announced, _ = journal.begin(quantity, NAMES)
        journal.reveal(announced.number, NAMES)
        journal.store(announced.number, total())
    assert journal.total(ROUND_1) is None and journal.total(ROUND_2) is not None
    with pytest.raises(CheckpointError, match=r"round 1 cannot be trained again.*sums of round 2"):
        journal.begin(ROUND_1, NAMES)


def test_a_total_that_cannot_be_kept_or_read_is_one_line(tmp_path):
    """A file as long as the system allows; a folder in its place."""
    journal = OwnerJournal(tmp_path)
    first, _ = journal.begin(ROUND_1, NAMES)
    journal.reveal(first.number, NAMES)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, former[1]))
    try:
        with pytest.raises(StorageError, match=r"update.safetensors cannot be written \("):
            journal.store(first.number, total())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    journal.store(first.number, total())
    (path,) = (tmp_path / "sums").iterdir()
    for damage in (b"", b"\xff" * 100, None):
        path.unlink()
        path.mkdir() if damage is None else path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"the sum in it was revealed and cannot be made"):
            journal.total(ROUND_1)
        with pytest.raises(CheckpointError, match="was revealed and is not summed again"):
            journal.begin(ROUND_1, NAMES)


def test_a_sum_that_was_given_up_is_void_for_good(tmp_path):
    journal = OwnerJournal(tmp_path)
    first, _ = journal.begin(ROUND_1, NAMES)
    second, complete = OwnerJournal(tmp_path).begin(ROUND_1, NAMES[:3])
    assert second.void == (first.number,) and not complete
    with pytest.raises(ProtocolError, match="given up is not revealed"):
        OwnerJournal(tmp_path).reveal(first.number, NAMES)


def test_one_model_is_summed_over_one_set_in_all_rounds(tmp_path):
    """As where a round changed nothing."""
    journal = OwnerJournal(tmp_path)
    first, _ = journal.begin(Quantity(VALIDATION, 1, "m"), NAMES)
    journal.reveal(first.number, NAMES)
    journal.store(first.number, total())
    second, _ = journal.begin(Quantity(VALIDATION, 2, "m"), NAMES)
    with pytest.raises(ProtocolError, match="over a, b, c, d was, and the difference"):
        journal.reveal(second.number, NAMES[:3])
    site = HospitalJournal(tmp_path / "a", "a", NAMES)
    site.contribute(Quantity(VALIDATION, 1, "m"), NAMES, first)
    with pytest.raises(ProtocolError, match="a refuses: it contributed to the validation of round"):
        other = second._replace(hospitals=digest_of_names(NAMES[:3]))
        site.contribute(Quantity(VALIDATION, 2, "m"), NAMES[:3], other)


def announced(names, number=b"\1", void=(), quantity=ROUND_1):
    """As it arrives."""
    announcement = Announcement(
        (number * 16).hex(),
        tuple((v * 16).hex() for v in void),
        digest_of_names(names),
        digest_of_quantity(quantity),
    )
    return Announcement.of(announcement.message())


@pytest.mark.parametrize(
    ("quantity", "names", "announcement", "message"),
    [
        (ROUND_1, NAMES[:3], announced(NAMES[:3], b"\2"), "contributed to the update of round 1"),
        (ROUND_1, NAMES, announced(NAMES[:3], b"\2"), "sums over other hospitals"),
        (ROUND_1, NAMES, announced(NAMES), "same sum twice"),
        (OTHER, NAMES, announced(NAMES, b"\2", quantity=OTHER), "another model"),
        (OTHER, NAMES, announced(NAMES, b"\2"), "called for the update of round 1, and the model"),
        (Quantity(VALIDATION, 1, "m1"), NAMES, announced(NAMES, b"\2"), "sums something else"),
        (ROUND_1, NAMES[:3], announced(NAMES[:3], b"\2", [b"\3"]), "contributed to the update"),
        (ROUND_0, NAMES, announced(NAMES, b"\2", quantity=ROUND_0), "train round 0 again"),
    ],
)
def test_what_a_hospital_refuses_after_a_crash(tmp_path, quantity, names, announcement, message):
    HospitalJournal(tmp_path, "a", NAMES).contribute(ROUND_1, NAMES, announced(NAMES))
    journal = HospitalJournal(tmp_path, "a", NAMES)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ProtocolError, match=message):
        journal.contribute(quantity, names, announcement)
    assert (tmp_path / FILE).read_bytes() == before


def test_what_a_hospital_repeats(tmp_path):
    """The same sum, which must then be over all; another set, once the earlier sum is void."""
    journal = HospitalJournal(tmp_path, "a", NAMES)
    assert not journal.contribute(ROUND_1, NAMES, announced(NAMES))
    assert journal.contribute(ROUND_1, NAMES, announced(NAMES, b"\2"))
    void = [b"\1", b"\2"]
    assert not journal.contribute(ROUND_1, NAMES[:3], announced(NAMES[:3], b"\4", void))
    journal.note_final(ROUND_1)
    again = HospitalJournal(tmp_path, "a", NAMES)
    with pytest.raises(ProtocolError, match="void whose result it sent"):
        again.contribute(ROUND_1, NAMES, announced(NAMES, b"\5", [b"\4"]))


def test_a_contribution_that_may_be_known_is_not_made_another_one(tmp_path):
    """Unless the earlier sum is void; and in a crash before the digest nothing had left."""
    second, third = ((number * 16).hex() for number in (b"\2", b"\3"))
    journal = HospitalJournal(tmp_path, "a", NAMES)
    journal.contribute(ROUND_1, NAMES, announced(NAMES))
    journal = HospitalJournal(tmp_path, "a", NAMES)
    journal.contribute(ROUND_1, NAMES, announced(NAMES, b"\2"))
    journal.note_digest(second, "aa")
    journal = HospitalJournal(tmp_path, "a", NAMES)
    journal.contribute(ROUND_1, NAMES, announced(NAMES, b"\3"))
    with pytest.raises(ProtocolError, match=r"a refuses .*update of round 1 once more.* its own"):
        journal.note_digest(third, "bb")
    journal.note_digest(third, "aa")
    journal.contribute(ROUND_1, NAMES, announced(NAMES, b"\4", [b"\1", b"\2", b"\3"]))
    journal.note_digest((b"\4" * 16).hex(), "bb")


def test_the_set_that_counts_is_the_one_after_dropouts(tmp_path):
    journal = HospitalJournal(tmp_path, "a", NAMES)
    journal.contribute(ROUND_1, NAMES, announced(NAMES))
    journal.narrow((b"\1" * 16).hex(), NAMES[:3])
    again = HospitalJournal(tmp_path, "a", NAMES)
    with pytest.raises(
        ProtocolError, match="update of round 1 over a, b, c; a sum over a, b, c, d"
    ):
        again.contribute(ROUND_1, NAMES, announced(NAMES, b"\2"))
    assert again.contribute(ROUND_1, NAMES[:3], announced(NAMES[:3], b"\2"))
    with pytest.raises(
        ProtocolError, match=r"refuses to unmask .* over a, b: .* a sum over a, b, c"
    ):
        again.narrow((b"\2" * 16).hex(), NAMES[:2])


def test_a_model_owner_names_what_it_revealed_and_a_hospital_that_lacks_it_refuses(tmp_path):
    """The hospital's folder was lost, or is an older copy."""
    owner = OwnerJournal(tmp_path / "owner")
    site = HospitalJournal(tmp_path / "a", "a", NAMES)
    first, _ = owner.begin(ROUND_1, NAMES)
    assert owner.last_with("a") == ()
    site.contribute(ROUND_1, NAMES, first)
    owner.reveal(first.number, NAMES[:3])
    second, _ = OwnerJournal(tmp_path / "owner").begin(ROUND_2, NAMES)
    named = second._replace(revealed=owner.last_with("a"))
    assert named.revealed == (first.number,) and owner.last_with("d") == ()
    lost = HospitalJournal(tmp_path / "lost", "a", NAMES)
    with pytest.raises(ProtocolError, match=r"a refuses .* holds nothing.*; restore .*begin anew"):
        lost.contribute(ROUND_2, NAMES, Announcement.of(named.message()))
    assert not site.contribute(ROUND_2, NAMES, Announcement.of(named.message()))


def test_a_record_that_was_cut_is_not_taken_for_the_whole(tmp_path):
    """Neither a hospital's nor the model owner's, wherever between two lines."""
    owner, site = OwnerJournal(tmp_path), HospitalJournal(tmp_path / "a", "a", NAMES)
    for quantity in (ROUND_1, ROUND_2):
        announced, _ = owner.begin(quantity, NAMES)
        site.contribute(quantity, NAMES, announced)
        site.note_digest(announced.number, "aa")
        owner.reveal(announced.number, NAMES)
        site.note_final(quantity)
    for folder, opened in (
        (tmp_path, lambda: OwnerJournal(tmp_path)),
        (tmp_path / "a", lambda: HospitalJournal(tmp_path / "a", "a", NAMES)),
    ):
        opened()
        whole = (folder / FILE).read_bytes()
        lines = whole.splitlines(keepends=True)
        for kept in range(len(lines)):
            (folder / FILE).write_bytes(b"".join(lines[:kept]))
            with pytest.raises(CheckpointError, match=r"lacks lines .*begin anew"):
                opened()
        (folder / FILE).unlink()
        with pytest.raises(CheckpointError, match=r"lacks lines .*begin anew"):
            opened()
        (folder / FILE).write_bytes(whole)
        (folder / MARK).write_text("{}")
        with pytest.raises(CheckpointError, match=r"sums.begun is damaged"):
            opened()


@pytest.mark.parametrize("lost", [True, False])
def test_a_note_that_a_sum_is_revealed_holds_without_its_mark(tmp_path, lost):
    """A mark that was lost or is an older copy looks as after a crash between line and mark."""
    owner = OwnerJournal(tmp_path)
    announced, _ = owner.begin(ROUND_1, NAMES)
    owner.reveal(announced.number, NAMES)
    owner.store(announced.number, total())
    older = (tmp_path / MARK).read_bytes()
    announced, _ = owner.begin(ROUND_2, NAMES)
    owner.reveal(announced.number, NAMES)
    (tmp_path / MARK).unlink() if lost else (tmp_path / MARK).write_bytes(older)
    with pytest.raises(CheckpointError, match="update of round 2 over a, b, c, d may have been"):
        OwnerJournal(tmp_path).begin(ROUND_2, NAMES[:3])
    assert OwnerJournal(tmp_path).begin(ROUND_2, NAMES)[1]


def test_a_damaged_record_is_one_line(tmp_path):
    HospitalJournal(tmp_path, "a", NAMES).contribute(ROUND_1, NAMES, announced(NAMES))
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])  # cut short by a crash: nothing had been contributed
    HospitalJournal(tmp_path, "a", NAMES).contribute(ROUND_1, NAMES, announced(NAMES))
    assert path.read_bytes() == whole
    with pytest.raises(CheckpointError, match="a run with other hospitals"):
        HospitalJournal(tmp_path, "a", NAMES[:3])
    for line in (
        b'{"kind": "x"}\n',
        b"[" * 100_000 + b"\n",
        b"null\n",
        b'{"kind": "void", "sum": "aa"}\n',
        b'{"kind": "roster", "hospitals": [[]]}\n',
    ):
        path.write_bytes(line + whole)
        with pytest.raises(CheckpointError, match=r"damaged in line 1 .*restore the file"):
            HospitalJournal(tmp_path, "a", NAMES)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("message", [None, {}, {"number": 1, "void": 2, "hospitals": 3}])
def test_what_is_no_announcement(message):
    with pytest.raises(ProtocolError, match="announced no sum"):
        Announcement.of(message)
