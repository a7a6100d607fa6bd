"""A revealed sum is final: crashes at every point, every hospital absent afterwards.

Local training is replaced by a step that costs nothing. What a crash leaves is what is on disk, so
one run is enough to have all crash points: it is copied at every durable write. Between two writes
the model owner may reveal totals; those count as revealed at the earlier one.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil

import jax
import numpy as np
import pytest
from tiny import assert_same, at, config_with, model

from primia_jax.core import marks, storage
from primia_jax.core.arrays import read_tensors
from primia_jax.data import make_plan
from primia_jax.errors import CheckpointError, PartyLost, ProtocolError, StorageError, UserError
from primia_jax.federated import (
    aggregation,
    checkpoints,
    hospital,
    hospital_training,
    judging,
    model_owner,
    safety,
    secagg,
    sums,
)
from primia_jax.federated.aggregation import OWNER
from primia_jax.federated.checkpoints import Progress
from primia_jax.federated.federation import Federation
from primia_jax.federated.local_training import Score
from primia_jax.federated.makers import party_makers
from primia_jax.federated.owner_journal import OwnerJournal
from primia_jax.runtime import LocalDriver, Locally, Vanish

ROUNDS = 2


def quick_step(state, number):
    """Moves the weights by what this hospital, round and its starting point say."""
    shift = np.float32(state.index + 1) / 64
    params = jax.tree.map(lambda leaf: leaf * 0.5 + shift * number, state.variables["params"])
    watch = state.watch._replace(bad_rounds=number)  # local state that must survive
    new = dataclasses.replace(state, watch=watch)
    return new, hospital_training.Trained(
        {**state.variables, "params": params}, None, 1.0, number, 0.1
    )


def quick_score_of(data):
    """The score of a model that is always right."""
    k = len(data.class_names)
    return Score(0.5, np.eye(k * k, dtype=np.int64)[data.labels * k + data.labels])


def quick_score(state, variables):
    k = len(state.validation.class_names)
    confusion = (state.index + 1) * np.eye(k, dtype=np.int64)
    return Score(0.5 + state.index, confusion.reshape(1, k * k))


class Runs:
    """Runs of one federation that share what is slow to make, and what its owner revealed."""

    def __init__(self, monkeypatch, **federated):
        secure, norm = federated.pop("secure", {}), federated.pop("norm", "none")
        self.config = config_with(
            federated={
                "mode": "federated_secure", "optimizer_state": "reset", "rounds": ROUNDS,
                "quorum": 0.5, **federated,
            },
            model={"norm": norm},
            secure_aggregation=secure,
        )  # fmt: skip
        plan = make_plan(self.config)
        self.names = tuple(site.site for site in plan.sites)
        driver = LocalDriver(party_makers(self.config, plan))
        self._driver, self._states = driver, dict(driver.states)
        self.revealed = []  # (purpose, starting model, hospitals)
        self.totals = []  # (purpose, hospitals whose numbers of images are in the total)
        self._weighted = set()
        monkeypatch.setattr(hospital_training, "train_locally", quick_step)
        monkeypatch.setattr(hospital_training, "score", quick_score)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        self._watch(monkeypatch)

    def _watch(self, monkeypatch):
        """Has the sums noted at the one place where a total is decoded."""
        collecting, reveal, decoded = sums.collecting, OwnerJournal.reveal, aggregation._decoded
        present, contribution = {}, hospital._contribution

        def contributing(state, result, weight):
            (self._weighted.add if weight else self._weighted.discard)(state.name)
            return contribution(state, result, weight)

        monkeypatch.setattr(hospital, "_contribution", contributing)

        def watched(journal, config, participants, quantity, **options):
            collect = collecting(journal, config, participants, quantity, **options)

            def noted(*sizes):
                present["quantity"] = quantity
                return (yield from collect(*sizes))

            return noted

        def revealing(journal, number, hospitals):
            present["hospitals"] = frozenset(hospitals)
            reveal(journal, number, hospitals)

        def opened(*arguments):
            quantity = present["quantity"]
            hospitals = present["hospitals"]
            self.revealed.append((quantity.purpose, quantity.model, hospitals))
            weighted = self._weighted if quantity.purpose == "update" else hospitals
            self.totals.append((quantity.purpose, frozenset(weighted) & hospitals))
            return decoded(*arguments)

        monkeypatch.setattr(sums, "collecting", watched)
        monkeypatch.setattr(OwnerJournal, "reveal", revealing)
        monkeypatch.setattr(aggregation, "_decoded", opened)

    def start(self, folder, absent=()):
        driver = LocalDriver({})
        driver.states, driver._makers = dict(self._states), self._driver._makers
        driver.missing = dict.fromkeys(absent, "its machine is not there")
        driver.revive = lambda name, timeout_s=0.0: False
        return Federation(driver, self.config, self.names, folder)

    def train(self, folder, absent=(), last=None):
        """Trains to the end from what is in `folder`, as `rounds.train_rounds` does."""
        federation = self.start(folder, absent)
        done = Progress()
        if (federation.owner_folder / checkpoints.LATEST).exists():
            done = checkpoints.latest(federation.owner_folder)
        federation.set_up(done.round)
        for number in range(done.round + 1, (last or self.config.federated.rounds) + 1):
            reports, _ = federation.train_round(number)
            federation.save(number)
            best = reports[OWNER].best_round
            checkpoints.commit(federation.owner_folder, Progress(number, best))
        return federation

    def crash_points(self, monkeypatch, tmp_path):
        """(what is on disk, the sums revealed by then) for each point of an unbroken run."""
        folder, points = tmp_path / "whole", []
        folder.mkdir()

        def snapshot():
            if points:
                points[-1] = (points[-1][0], list(self.revealed))
            points.append((tmp_path / f"crash_{len(points)}", None))
            shutil.copytree(folder, points[-1][0])

        append, replacing, folders = (
            storage.append_lines, storage.replacing, storage.replacing_folder
        )  # fmt: skip

        def appended(path, texts):
            append(path, texts)
            snapshot()

        def after(context):
            @contextlib.contextmanager
            def replaced(path, *options):
                with context(path, *options) as partial:
                    yield partial
                snapshot()

            return replaced

        with monkeypatch.context() as patch:
            patch.setattr(storage, "append_lines", appended)
            patch.setattr(storage, "replacing", after(replacing))
            patch.setattr(storage, "replacing_folder", after(folders))
            snapshot()
            whole = self.train(folder)
        points[-1] = (points[-1][0], list(self.revealed))
        return whole, points


def determined(sets, names):
    """The hospitals whose number follows from the totals over `sets`."""
    rows = np.array([[name in members for name in names] for members in sets], float)
    rank = np.linalg.matrix_rank(rows)
    units = np.eye(len(names))
    return {
        name
        for name, unit in zip(names, units)
        if np.linalg.matrix_rank(np.vstack([rows, unit])) == rank
    }


def check(revealed, least):
    """No two revealed sums from one model differ by fewer than `least` hospitals."""
    for (*left, a), (*right, b) in itertools.combinations(revealed, 2):
        if left == right:
            assert a == b or len(a ^ b) >= least, (left, sorted(a ^ b))


def may_have_revealed(folder):
    """True if the model owner's files hold the note that a sum is revealed, and not its total."""
    record = folder / "checkpoints" / "sums.jsonl"
    lines = (
        [json.loads(text) for text in record.read_text().splitlines()] if record.exists() else []
    )
    noted = [line["sum"] for line in lines if line["kind"] == "revealing"]
    kept = (folder / "checkpoints" / "sums").glob("*.safetensors")
    totals = {json.loads(read_tensors(path)[1]["about"])["sum"] for path in kept}
    return bool(noted) and noted[-1] not in totals


@pytest.mark.parametrize(
    ("federated", "every"),
    [
        ({"hospitals": 3}, 2),
        pytest.param({"hospitals": 3}, 1, marks=pytest.mark.slow),
        pytest.param(
            {"hospitals": 4, "secure": {"min_participants": 3}}, 1, marks=pytest.mark.slow
        ),
        pytest.param(
            {
                "hospitals": 4,
                "secure": {"scheme": "secagg", "min_participants": 3, "dropouts": 0.0},
            },
            1,
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.fault(
    "the command is killed at any point of a secure run, and a hospital is gone afterwards",
    "--resume goes on; no sum is revealed over a second set of hospitals",
)
def test_no_crash_reveals_a_second_sum(monkeypatch, tmp_path, federated, every):
    runs = Runs(monkeypatch, **federated)
    whole, points = runs.crash_points(monkeypatch, tmp_path)
    least = runs.config.secure_aggregation.fewest_participants
    purposes = [purpose for purpose, *_ in runs.revealed]
    assert purposes == ["statistics"] + ["update", "validation"] * ROUNDS
    assert len(points) > 40
    # For each sum two: after the line, and after its mark.
    uncertain = {i for i, (folder, _) in enumerate(points) if may_have_revealed(folder)}
    assert len(uncertain) == 2 * len(purposes)
    tried, refused = range(0, len(points), every), set()
    for i in tried:
        folder, before = points[i]
        for absent in ((), *((name,) for name in runs.names)):
            copy = tmp_path / f"resumed_{i}"
            shutil.copytree(folder, copy)
            runs.revealed[:] = before
            try:
                resumed = runs.train(copy, absent)
            except UserError as error:
                assert absent and "may have been revealed" in str(error)
                refused.add((i, *absent))
            else:
                if not absent:
                    assert_same(model(resumed), model(whole))
                    for name in runs.names:
                        assert at(resumed, name).watch == at(whole, name).watch
            check(runs.revealed, least)
            shutil.rmtree(copy)
    assert refused == set(itertools.product(uncertain.intersection(tried), runs.names))


@pytest.mark.parametrize(
    ("federated", "every"),
    [
        ({"hospitals": 3}, 7),
        pytest.param({"hospitals": 3}, 1, marks=pytest.mark.slow),
        pytest.param(
            {"hospitals": 4, "secure": {"min_participants": 3}}, 3, marks=pytest.mark.slow
        ),
    ],
)
def test_no_loss_on_the_way_reveals_a_second_sum(monkeypatch, tmp_path, federated, every):
    """A hospital is gone for good at every event of a round; the others go on, in one process."""
    runs = Runs(monkeypatch, **federated)
    least = runs.config.secure_aggregation.fewest_participants
    for name in runs.names:
        for event in range(0, 1000, every):
            runs.revealed.clear()
            federation = runs.start(tmp_path / f"{name}_{event}")
            federation.set_up()
            federation.driver = Losing(federation.driver, name, event)
            try:
                federation.train_round(1)
                break  # a round has no more events
            except PartyLost as error:
                federation.driver = federation.driver.inner
                federation.recover(error, 0)
            federation.train_round(1)
            federation.train_round(2)
            check(runs.revealed, least)


class Losing:
    """A driver that loses a party before an event of the run, counted over all parties."""

    def __init__(self, inner, party, event):
        self.inner, self._party, self._event = inner, party, event

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def run(self, programs, *arguments, **options):
        def counted(program):
            def steps(state):
                whole, reply = program(state), None
                while True:
                    try:
                        event = whole.send(reply)
                    except StopIteration as stop:
                        return stop.value
                    self._event -= 1
                    if self._event < 0:
                        raise PartyLost(f"{self._party} was lost", (self._party,))
                    reply = yield event

            return steps

        watched = {name: counted(program) for name, program in programs.items()}
        return self.inner.run(watched, *arguments, **options)


def test_what_was_revealed_and_not_kept_is_summed_over_the_same_hospitals_alone(
    monkeypatch, tmp_path
):
    runs = Runs(monkeypatch, hospitals=4, secure={"min_participants": 3})
    federation = runs.start(tmp_path)
    federation.set_up()

    def crash(journal, number, total):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OwnerJournal, "store", crash)
        federation.train_round(1)
    assert len(runs.revealed) == 2
    with pytest.raises(UserError, match=r"update of round 1 over hospital_0.* once all of these"):
        runs.train(tmp_path, absent=("hospital_2",))
    assert len(runs.revealed) == 2
    runs.train(tmp_path)
    check(runs.revealed, 3)


@pytest.mark.fault(
    "the disk is full when the model owner keeps a sum, and a hospital's checkpoint is gone",
    "a hospital that would contribute something else refuses; the others' sum is no second one",
)
def test_a_hospital_does_not_repeat_a_sum_with_something_else(monkeypatch, tmp_path):
    """The difference of the two totals would be its contribution alone."""
    runs = Runs(monkeypatch, hospitals=4, secure={"min_participants": 3})
    federation = runs.start(tmp_path)
    federation.set_up()

    def full(journal, number, total):
        raise StorageError("disk full")

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(OwnerJournal, "store", full)
        federation.train_round(1)
    before = list(runs.revealed)

    def other_step(state, number):
        return quick_step(state, number + 1 if state.index == 1 else number)

    again = runs.start(tmp_path)
    again.set_up()
    with monkeypatch.context() as patch:
        patch.setattr(hospital_training, "train_locally", other_step)
        with pytest.raises(ProtocolError, match=r"hospital_1 refuses .* once more"):
            again.train_round(1)
    assert runs.revealed == before
    again = runs.start(tmp_path)
    again.set_up()
    again.train_round(1)
    check(runs.revealed, 3)


def evaluated(runs, folder, every=()):
    """An evaluation in the folder of a run; these hospitals are called for all of their images."""
    federation = runs.start(folder)
    adopt = lambda state: judging.adopt_statistics(state, folder)  # noqa: E731
    federation.driver.run({OWNER: Locally(adopt)})
    federation.set_up(to_train=False)
    programs = {
        name: lambda state: judging.judge(state, every=state.name in every) for name in runs.names
    }
    programs[OWNER] = lambda state: judging.have_judged(state, run=folder)
    return federation.driver.run(programs)[0]


def test_one_hospital_alone_is_not_evaluated_on_other_images(monkeypatch, tmp_path):
    """Neither as the operator says, nor as its images have changed since."""
    runs = Runs(monkeypatch, hospitals=3, secure={"min_participants": 3})
    monkeypatch.setattr(judging.local_training, "score", lambda *a: quick_score_of(a[2]))
    runs.train(tmp_path, last=1)
    first = evaluated(runs, tmp_path)
    before = list(runs.revealed)
    with pytest.raises(ProtocolError, match=r"hospital_1 refuses: it was called for the eval"):
        evaluated(runs, tmp_path, every=["hospital_1"])
    site = runs._states["hospital_1"]
    fewer = dataclasses.replace(
        site.validation, images=site.validation.images[1:], labels=site.validation.labels[1:]
    )
    with monkeypatch.context() as patch:
        patch.setitem(runs._states, "hospital_1", dataclasses.replace(site, validation=fewer))
        with pytest.raises(ProtocolError, match=r"hospital_1 refuses .*validation once more"):
            evaluated(runs, tmp_path)
    assert runs.revealed == before
    assert evaluated(runs, tmp_path) == first


def test_hospitals_refuse_a_model_owner_that_forgot(monkeypatch, tmp_path):
    """Its folder was set back: it would sum again, over fewer, and hospitals say no."""
    runs = Runs(monkeypatch, hospitals=4, secure={"min_participants": 3})
    federation = runs.start(tmp_path)
    federation.set_up()
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "before")
    federation.train_round(1)
    before = list(runs.revealed)
    shutil.rmtree(tmp_path / "checkpoints")
    shutil.move(tmp_path / "before", tmp_path / "checkpoints")
    again = runs.start(tmp_path, absent=("hospital_3",))
    again.set_up()
    with pytest.raises(ProtocolError, match="refuses: it contributed to the update of round 1"):
        again.train_round(1)
    assert runs.revealed == before


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("left", [None, b"", b'{"kind": "ro'])
@pytest.mark.fault(
    "a hospital's record of secure sums is deleted or empty", "the command ends with one line"
)
def test_a_lost_record_of_a_hospital_is_not_begun_anew(monkeypatch, tmp_path, checkpoint, left):
    """An evaluation in the folder of the run names no round; a run may have completed none."""
    runs = Runs(monkeypatch, hospitals=3)
    runs.train(tmp_path, last=1) if checkpoint else runs.start(tmp_path).set_up()
    path = checkpoints.site_folder(tmp_path, "hospital_1") / "sums.jsonl"
    path.unlink() if left is None else path.write_bytes(left)
    for to_train in (False, True):
        with pytest.raises(CheckpointError, match=r"hospital_1/sums.jsonl lacks lines .*restore"):
            runs.start(tmp_path).set_up(0, to_train)
        assert path.exists() is (left is not None)


def cut(site, lines, marked=False):
    """Cuts a hospital's record at a line boundary; `marked`: its mark too, as an older copy."""
    path = site / "sums.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    if marked:
        marks.write(site / "sums.begun", marks.Mark.of(path.read_bytes()), {})


@pytest.mark.parametrize(
    ("lose", "rounds", "message"),
    [
        (lambda site: cut(site, -3), 1, "sums.jsonl lacks lines that it held when .*sums.begun"),
        (lambda site: cut(site, 3, marked=True), 1, "lacks lines .* when .*round_000001 was"),
        (shutil.rmtree, 0, r"refuses the update of round 1: .*holds nothing.*begin anew"),
        (shutil.rmtree, 1, r"took part in round 1, and its checkpoint of it is missing .*begin a"),
    ],
    ids=["cut", "older", "folder lost", "folder lost after a round"],
)
@pytest.mark.fault(
    "the hospitals' records of secure sums are cut, older copies or lost, and the model owner's "
    "folder is set back",
    "the command ends with one line; there is no second sum",
)
def test_hospitals_and_owner_that_forget_together_sum_nothing_twice(
    monkeypatch, tmp_path, lose, rounds, message
):
    """The owner's folder is that of one round before; another set is available."""
    runs = Runs(monkeypatch, hospitals=4, secure={"min_participants": 3})
    federation = runs.start(tmp_path) if not rounds else runs.train(tmp_path, last=rounds)
    if not rounds:
        federation.set_up()
    owner, copy = tmp_path / "checkpoints", tmp_path / "before"
    shutil.copytree(owner, copy)
    federation.train_round(rounds + 1)
    before = list(runs.revealed)
    shutil.rmtree(owner)
    shutil.move(copy, owner)
    for name in runs.names:
        lose(checkpoints.site_folder(tmp_path, name))
    (tmp_path / "identities.json").unlink()  # as in another workdir
    again = runs.start(tmp_path, absent=("hospital_3",))
    with pytest.raises(UserError, match=message):
        again.set_up(rounds)
        again.train_round(rounds + 1)
    assert runs.revealed == before


def test_hospitals_refuse_rounds_out_of_order(monkeypatch, tmp_path):
    """Whatever the operator calls; and another set of hospitals than the model owner's."""
    runs = Runs(monkeypatch, hospitals=4, secure={"min_participants": 3})
    federation = runs.train(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "sums")
    owner = at(federation, OWNER)
    owner.journal._begun.clear()  # an owner that would go along
    with pytest.raises(ProtocolError, match=r"refuses to train round 1 again.*round 2"):
        federation.train_round(1)


def test_a_set_that_hides_nobody_is_refused_by_the_hospital(monkeypatch, tmp_path):
    """The operator names two of four; the configuration of the hospitals wants three."""
    runs = Runs(monkeypatch, hospitals=4, secure={"min_participants": 3})
    federation = runs.start(tmp_path)
    federation.set_up()
    federation._attend(runs.names[:2], (OWNER,))
    programs = dict.fromkeys(runs.names[:2], lambda state: hospital.train_round(state, 1))
    programs[OWNER] = lambda state: model_owner.train_round(state, 1)
    before = list(runs.revealed)
    with pytest.raises(ProtocolError, match="refuses a sum over 2 hospitals: at least 3"):
        federation.driver.run(programs)
    assert runs.revealed == before


STOPPING = {"early_stopping": {"enabled": True}, "rounds": 3}


def stopped(federation, names):
    """Has these hospitals stop for good, as after a round that did not improve their models."""
    for name in names:
        site = at(federation, name)
        watch = site.watch._replace(stopped=True)
        federation.driver.states[name] = dataclasses.replace(site, watch=watch)
    federation._stopped.update(names)


@pytest.mark.fault(
    "five of eight hospitals have stopped early, and all but one of the others drop out of a sum",
    "the sum is given up; one without dropouts is over those that train alone",
)
def test_a_hospital_that_has_stopped_hides_nobody(monkeypatch, tmp_path):
    runs = Runs(monkeypatch, hospitals=8, **STOPPING)
    federation = runs.start(tmp_path)
    federation.set_up()
    stopped(federation, runs.names[:5])
    driver, before = federation.driver, list(runs.revealed)
    federation.driver = driver.with_faults(
        *(Vanish(name, stage=secagg.MASK) for name in runs.names[5:7])
    )
    with pytest.raises(UserError, match="given up"):
        federation.train_round(1)
    assert runs.revealed == before
    federation.driver = driver
    reports, _ = federation.train_round(1)
    sets = {purpose: hospitals for purpose, _, hospitals in runs.revealed}
    assert sets["update"] == set(runs.names[5:]) and sets["validation"] == set(runs.names)
    assert reports[OWNER].samples == sum(reports[name].samples for name in runs.names[5:])
    for name in runs.names:
        assert_same(at(federation, name).variables["params"],
                    at(federation, runs.names[0]).variables["params"])  # fmt: skip


@pytest.mark.parametrize("named", [slice(None), slice(1, None)])
def test_a_hospital_that_has_stopped_refuses_a_sum_of_updates(monkeypatch, tmp_path, named):
    """The operator has a round made after training has ended; nobody else looks at who trains."""
    runs = Runs(monkeypatch, hospitals=3, secure={"min_participants": 2}, **STOPPING)
    federation = runs.start(tmp_path)
    federation.set_up()
    stopped(federation, runs.names[:2])
    before = list(runs.revealed)
    trainers = runs.names[named]
    programs = dict.fromkeys(
        runs.names, lambda state: hospital.train_round(state, 1, trainers=trainers)
    )
    programs[OWNER] = lambda state: model_owner.train_round(state, 1, trainers=trainers)
    with pytest.raises(ProtocolError, match=r"hospital_[01] refuses .* has stopped training"):
        federation.driver.run(programs)
    assert runs.revealed == before


@pytest.mark.parametrize(
    ("federated", "events", "public"),
    [
        ({"hospitals": 3, "secure": {"min_participants": 3}}, (), False),
        ({"hospitals": 3, "secure": {"min_participants": 3}}, ("crash",), False),
        ({"hospitals": 4, "secure": {"min_participants": 3}}, ("late",), True),
        ({"hospitals": 4, "secure": {"min_participants": 3}}, ("crash", "late"), True),
        ({"hospitals": 4, "secure": {"min_participants": 4}}, ("crash",), False),
        ({"hospitals": 4, "secure": {"min_participants": 3}, **STOPPING}, ("stop",), True),
        ({"hospitals": 4, "secure": {"min_participants": 4}, **STOPPING}, (), True),
        ({"hospitals": 8, "participation": 0.5, "rounds": 20}, (), True),
        ({"hospitals": 6, "secure": {"min_participants": 3}, "rounds": 4}, ("drop",), True),
        ({"hospitals": 6, "secure": {"min_participants": 6}, "rounds": 2}, (), False),
    ],
)
def test_what_is_called_secret_does_not_follow_from_the_totals(
    monkeypatch, tmp_path, federated, events, public
):
    """Of all totals of a run: their sets of hospitals, as a matrix, and what its rows span."""
    runs = Runs(monkeypatch, **federated)
    assert safety.counts_are_public(runs.config) is public
    assert ("public" in safety.counts_statement(runs.config)) is public
    step = quick_step

    def stopping(state, number):
        state, result = step(state, number)
        stopped = state.index == 0 and number > 1
        return dataclasses.replace(state, watch=state.watch._replace(stopped=stopped)), result

    if "stop" in events:
        monkeypatch.setattr(hospital_training, "train_locally", stopping)
    absent = runs.names[-1:] if "late" in events else ()
    if "crash" in events:
        federation = runs.start(tmp_path, absent)
        federation.set_up()
        federation.train_round(1)
    if "drop" in events:
        federation = runs.start(tmp_path)
        federation.set_up()
        driver = federation.driver
        for number in range(1, runs.config.federated.rounds + 1):
            name = runs.names[number]
            federation.driver = driver.with_faults(Vanish(name, stage=secagg.MASK))
            federation.train_round(number)
            federation.save(number)
    elif absent:  # there from the second round on
        federation = runs.train(tmp_path, absent, last=1)
        runs.train(tmp_path)
    else:
        runs.train(tmp_path)
    least = safety.min_participants(runs.config)
    check(runs.revealed, least)
    for quantity in {entry[:2] for entry in runs.revealed}:
        sets = [hospitals for *of, hospitals in runs.revealed if tuple(of) == quantity]
        assert not determined(sets, runs.names)
        assert all(len(members) >= least for members in sets)
    sizes = [members for purpose, members in runs.totals if purpose in ("statistics", "update")]
    judged = [members for purpose, members in runs.totals if purpose == "validation"]
    leaked = determined(sizes, runs.names) | determined(judged, runs.names)
    assert not leaked or public
    if (events and public) or "participation" in federated:
        assert leaked  # the statement is not made in vain
