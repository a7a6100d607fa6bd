"""The audit from recorded runs to its report, with attacks too short to find anything."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny

import primia_jax
from primia_jax.campaigns.audit import check_inversion, inversion_table
from primia_jax.campaigns.audit.settings import overridden, parse, run_config
from primia_jax.campaigns.audit.views import check_ahead, decoys, digest, gallery_size, views
from primia_jax.config import AuditConfig, ExperimentConfig, from_config_dict
from primia_jax.core.storage import read_json
from primia_jax.errors import CheckpointError, ConfigError, DataError
from primia_jax.federated import checkpoints, local_training, recording, variables
from primia_jax.inversion import observe
from primia_jax.tasks import Classification


def run_views(folder, **audit):
    config = from_config_dict(ExperimentConfig, read_json(folder / "config.json"))
    return views(folder, config, AuditConfig(**audit), 6), config


def pixels(images):
    """Features that need no network."""
    return np.asarray(images).reshape(len(images), -1)[:, ::16]


def test_what_each_party_records(runs):
    for mode, folder in runs.items():
        seen = recording.read_view(folder / "checkpoints", 1)
        senders = [one.sender for one in seen.arrivals]
        sites = sorted(path.name for path in (folder / "sites").iterdir())
        if mode == "federated_secure":
            assert senders == [recording.SUM] and len(sites) == 3
        else:
            assert sorted(senders) == sites
        truths = [recording.read_truth(folder / "sites" / name, 1) for name in sites]
        assert sum(one.weight for one in seen.arrivals) == sum(one.weight for one in truths)
        for name, truth in zip(sites, truths):
            assert truth.images.shape == (1, 16, 16, 1)
            own = recording.read_images(folder / "sites" / name)
            assert len(own) == truth.weight


def test_the_owner_holds_no_single_update_under_secure_aggregation(runs):
    # The same images and the same first model in both runs: whatever a hospital's update was, the
    # owner of the secure run has its mean with the others, and nothing anywhere near one of them.
    plain = recording.read_view(runs["federated"] / "checkpoints", 1)
    file = runs["federated_secure"] / "checkpoints" / "recorded" / "round_000001.npz"
    with np.load(file) as stored:
        vectors = [array.ravel() for array in stored.values() if array.dtype.kind == "f"]
    before = np.concatenate(plain.before.params)
    single = [np.concatenate(one.vectors.params) - before for one in plain.arrivals]
    total = sum(one.weight for one in plain.arrivals)
    mean = sum(one.weight * update for one, update in zip(plain.arrivals, single)) / total
    changes = [v - before for v in vectors if v.shape == before.shape and not (v == before).all()]
    assert len(changes) == 1
    np.testing.assert_allclose(changes[0], mean, atol=1e-6)
    for update in single:
        assert np.linalg.norm(changes[0] - update) > 0.1 * np.linalg.norm(update)


def test_recording_and_its_absence_change_no_bit(runs, tmp_path):
    silent = tiny("federated_secure", record_updates=False)
    other = primia_jax.train(silent, tmp_path)
    recorded = json.loads((runs["federated_secure"] / "metrics.json").read_text())
    assert other.metrics == recorded
    assert not list(tmp_path.rglob("recorded"))


@pytest.mark.parametrize("mode", ["local", "federated", "federated_secure"])
def test_what_is_attacked_is_the_update_of_the_true_images(runs, mode):
    # What is observed must be what the library makes of the truth: else attacks seek a phantom.
    found, _ = run_views(runs[mode])
    assert sum(len(case.images) for case in found.cases) == (2 if mode == "local" else 6)
    for case in found.cases:
        again = observe(case.observed.training, case.observed.variables, case.images, case.labels)
        for seen, made in zip(
            jax.tree.leaves(case.observed.update), jax.tree.leaves(again.update), strict=True
        ):
            np.testing.assert_allclose(seen, made, rtol=1e-3, atol=2e-4 * np.abs(made).max())


@pytest.mark.slow
def test_several_steps_with_adam_and_batch_norm_are_followed(tmp_path):
    """Two augmented steps of two images, summed over two hospitals, moments included."""
    config = tiny("federated_secure", sync_every=2, rounds=1, hospitals=2)
    config.model.norm = "batch"
    config.training.batch_size = 2
    config.training.optimizer = "adam"
    config.training.beta1 = 0.9
    config.training.schedule = "log_linear"
    primia_jax.train(config, tmp_path)
    found, _ = run_views(tmp_path, moments_known=True)
    (case,) = found.cases
    assert case.images.shape[0] == 8 and case.observed.training.local_steps == 2
    assert any("Adam" in note for note in found.notes)
    again = observe(
        case.observed.training,
        case.observed.variables,
        case.images,
        case.labels,
        moments_known=True,
    )
    for seen, made in zip(jax.tree.leaves(case.observed), jax.tree.leaves(again)):
        if np.issubdtype(np.asarray(seen).dtype, np.floating):
            np.testing.assert_allclose(seen, made, rtol=2e-2, atol=2e-3 * np.abs(made).max())


def test_an_audit_of_a_run_as_it_is(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["federated"], folder)
    report = (folder / "report.html").read_text()
    told = primia_jax.audit(tiny(), folder, extract=pixels)
    assert json.loads((folder / "audit.json").read_text()) == told
    (row,) = told["settings"]
    assert row["setting"] == "federated" and row["n"] == 6 and row["images_per_update"] == 1
    assert row["psnr"]["worst"] == max(row["psnr"]["values"])
    assert row["mse"]["worst"] == min(row["mse"]["values"])
    assert (
        row["fid"]["floor"] > 0 and row["identified"]["chance"] == 1 / row["identified"]["gallery"]
    )
    assert (folder / row["panel"]).stat().st_size
    page = (folder / "audit.html").read_text()
    assert "inferred from the last layer" in page and "proves no privacy" not in page
    assert "No control was run" in page
    assert (folder / "report.html").read_text() == report  # the run's own stays

    # Taken up, nothing is attacked again; another attack is.
    def refuse(setting, done, total):
        raise AssertionError(f"{setting} attacked again")

    again = primia_jax.audit(tiny(), folder, extract=pixels, resume=True, progress=refuse)
    assert again["settings"] == told["settings"]
    longer = tiny()
    longer.audit.steps = 4
    with pytest.raises(AssertionError, match="federated attacked again"):
        primia_jax.audit(longer, folder, extract=pixels, resume=True, progress=refuse)
    primia_jax.audit(tiny(), folder, extract=pixels)
    assert (folder / "previous" / "1" / "audit.json").exists()
    assert (folder / "metrics.json").exists()


def test_an_audit_trains_what_it_compares(tmp_path):
    config = tiny(rounds=1)
    config.audit.images = config.audit.defence_images = 3
    config.audit.settings = (
        "plain: federated.mode=federated",
        "secure: federated.mode=federated_secure",
    )
    config.audit.defences = ("noise: federated.update_clip=0.1 federated.update_noise=0.01",)
    config.audit.reference = "plain"
    config.audit.control_steps = 1
    told = primia_jax.audit(config, tmp_path, extract=pixels)
    assert [row["setting"] for row in told["settings"]] == ["plain", "secure", "noise"]
    assert told["settings"][1]["images_per_update"] == 3
    # Apart from control.png and leakage.png, whatever a setting is called.
    assert told["settings"][0]["panel"] == "audit/panels/plain.png"
    assert [one["second"] for one in told["defences"]["psnr"]] == ["noise"]
    assert [(t["first"], t["second"]) for t in told["tests"]["psnr"]] == [("plain", "secure")]
    assert told["tests"]["psnr"][0]["paired"]  # the same three images, summed or not
    assert told["control"]["recovered"] is False
    assert all(-1 <= row["utility"]["mcc"] <= 1 for row in told["settings"])
    assert "too few for FID" in told["settings"][0]["distances"]
    page = (tmp_path / "report.html").read_text()
    assert "update_noise=0.01" in page
    # Of an attack that fails where it must succeed nothing is concluded, nor shown.
    assert len(told["verdicts"]) == 1 and "The control failed" in page
    assert "report ends here" in page and "Student" not in page and "too few for FID" not in page
    # Taken up, runs are kept but for the one whose settings changed, which is trained anew.
    config.audit.defences = ("noise: federated.update_clip=0.1 federated.update_noise=0.02",)
    trained, attacked = set(), set()

    def note(what, done, total):
        (trained if what.startswith("training ") else attacked).add(what)

    primia_jax.audit(config, tmp_path, extract=pixels, resume=True, progress=note)
    assert trained == {"training noise"} and attacked == {"noise"}
    assert (tmp_path / "runs" / "noise" / "previous" / "1" / "metrics.json").exists()
    # So is one that was trained on other images.
    data = tmp_path / "runs" / "noise" / "data.json"
    data.write_text(json.dumps({**json.loads(data.read_text()), "fingerprint": "other"}))
    trained.clear()
    primia_jax.audit(config, tmp_path, extract=pixels, resume=True, progress=note)
    assert trained == {"training noise"}


def test_the_table_of_recorded_runs(runs, tmp_path):
    config = tiny()
    table = inversion_table(config, tmp_path, runs=dict(reversed(runs.items())), extract=pixels)
    assert [row["setting"] for row in table["rows"]] == ["local", "federated", "federated_secure"]
    assert table["images"] == 2  # rounds of one pooled image
    assert table["anova"]["mse"]["p"] is not None and len(table["tests"]["mse"]) == 3
    paired = {(t["first"], t["second"]): t["paired"] for t in table["tests"]["mse"]}
    assert paired.pop(("federated_secure", "federated")) and not any(paired.values())
    assert table["note"] == "Attacked were updates of rounds 1 to 2 (of 2) of the runs themselves."
    assert all((tmp_path / panel).exists() for panel in table["panels"].values())
    json.dumps(table)


def test_numbers_of_other_recordings_are_not_kept(runs, tmp_path):
    """Whatever an attack or its judgement depends on is in the hash that `--resume` looks at."""
    folder = _copied(runs["federated"], tmp_path)
    before = digest(run_views(folder)[0])
    assert digest(run_views(folder)[0]) == before
    for name in ("images", "round_000001"):
        path = folder / "sites" / "hospital_1" / "recorded" / f"{name}.npz"
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays["images"] = arrays["images"][:, ::-1]
        np.savez(path, **arrays)
        after = digest(run_views(folder)[0])
        assert after != before
        before = after


def test_decoys_are_others_and_augmented_alike(runs):
    """A true image must not stand out among them, nor another of the same update count as one."""
    found, config = run_views(runs["federated_secure"])
    case, name = found.cases[0], "hospital_0"
    own, n = found.images[name], gallery_size(found, 50) - 1
    assert n == min(map(len, found.images.values())) - 1
    one, other = (
        decoys(found, config, case, name, n, np.random.default_rng(seed)) for seed in (0, 0)
    )
    np.testing.assert_array_equal(one, other)
    assert one.shape == (n, *own.shape[1:])
    plain = from_config_dict(ExperimentConfig, _unaugmented(tiny()).to_dict())
    still = decoys(found, plain, case, name, n, np.random.default_rng(0))
    assert not np.allclose(one, still)
    behind = own[case.records[np.asarray(case.hospitals) == name]]
    for image in still:
        assert any((image == other).all() for other in own)
        assert not any((image == other).all() for other in behind)
    assert decoys(found, config, case, name, 0, np.random.default_rng(0)).shape[0] == 0


def _unaugmented(config):
    for key in config.augmentation:
        if key.endswith("_p"):
            config.augmentation[key] = 0.0
    return config


def test_files_that_are_none_of_a_run_are_said_in_one_line(runs, tmp_path):
    (tmp_path / "odd").mkdir()
    for text in ("[1]", "null"):
        (tmp_path / "odd" / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
            primia_jax.audit(tiny(), tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text('{"modell": {}}')
    with pytest.raises(CheckpointError, match=r"config.json is not of a run .* no such setting"):
        primia_jax.audit(tiny(), tmp_path / "odd")
    config = tiny()
    config.audit.features = str(tmp_path / "odd")
    for text in ("{}", "[1]"):
        (tmp_path / "odd" / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"no checkpoint in|config.json cannot be read"):
            primia_jax.audit(config, _copied(runs["federated"], tmp_path / text))


def test_what_cannot_be_attacked_is_said_in_one_line(runs, tmp_path):
    how = "--config.federated.record_updates=true"
    with pytest.raises(CheckpointError, match=f"no run to attack; add {how}"):
        primia_jax.audit(tiny(record_updates=False), tmp_path / "empty")
    silent = tmp_path / "silent"
    shutil.copytree(runs["federated"], silent)
    shutil.rmtree(silent / "checkpoints" / "recorded")
    with pytest.raises(CheckpointError, match=f"recorded no updates; train with {how}"):
        primia_jax.audit(tiny(), silent)
    gone = tmp_path / "gone"
    shutil.copytree(runs["federated_secure"], gone)
    shutil.rmtree(gone / "sites" / "hospital_1" / "recorded")
    with pytest.raises(DataError, match="copy sites/NAME/recorded"):
        primia_jax.audit(tiny(), gone)


@pytest.mark.parametrize(
    ("audit", "message"),
    [
        ({"moments_known": True}, "moments_known needs config.model.norm = 'batch'"),
        ({"checkpoint": "end", "settings": ()}, ""),
        ({"largest_update": 2}, "3 images stand behind an update"),
    ],
)
def test_threat_models_that_a_run_does_not_allow(runs, tmp_path, audit, message):
    config = tiny()
    config.audit.update(audit)
    if not message:  # two rounds are too few for thirds: all of them count
        primia_jax.audit(config, _copied(runs["federated"], tmp_path), extract=pixels)
        return
    with pytest.raises(ConfigError, match=message):
        primia_jax.audit(config, _copied(runs["federated_secure"], tmp_path), extract=pixels)


def _copied(folder: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    return shutil.copytree(folder, to / "run")


def test_rounds_of_another_third_must_have_been_recorded(runs, tmp_path):
    folder = _copied(runs["federated"], tmp_path)
    checkpoints.commit(folder / "checkpoints", checkpoints.Progress(9, 1, False))
    found, _ = run_views(folder)
    assert {case.round for case in found.cases} == {1, 2}
    with pytest.raises(ConfigError, match=r"of 9 rounds the run .* recorded 1, 2 only"):
        run_views(folder, checkpoint="end")


@pytest.mark.parametrize(
    ("audit", "error", "message"),
    [
        ({"settings": ("plain: federated.mode=federated",)}, ConfigError, "names none of local, f"),
        ({"settings": ("local: federated.mod=local",)}, ConfigError, "did you mean 'mode'"),
        ({"overrides": ("model.nrm=none",)}, ConfigError, "did you mean 'norm'"),
        ({"moments_known": True}, ConfigError, "moments_known needs"),
        ({"largest_update": 2}, ConfigError, "local: 3 images stand behind an update"),
        ({"features": "nowhere"}, CheckpointError, "no such folder of a run"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused_before_any_training(
    tmp_path, audit, error, message
):
    config = tiny()
    check_inversion(config)
    config.audit.update(audit)
    with pytest.raises(error, match=message):
        check_inversion(config)
    with pytest.raises(error, match=message):
        inversion_table(config, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_pooled_training_takes_the_batches_of_all_hospitals():
    """So that local and federated_secure are attacked behind as many images."""
    base = from_config_dict(ExperimentConfig, tiny(hospitals=5).to_dict())
    local, plain, secure = (run_config(base, setting) for setting in parse(base.audit))
    assert (local.training.batch_size, plain.training.batch_size) == (5, 1)
    (named,) = parse(AuditConfig(settings=("local: federated.mode=local training.batch_size=2",)))
    assert run_config(base, named).training.batch_size == 2
    check_ahead(secure, AuditConfig(largest_update=5), "secure")
    with pytest.raises(ConfigError, match="secure: 5 images stand behind an update"):
        check_ahead(secure, AuditConfig(largest_update=4), "secure")
    check_ahead(plain, AuditConfig(largest_update=4), "plain")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "settings is empty"),
        (("no colon",), "not of the form 'NAME: KEY=VALUE"),
        (("../up: a.b=1",), "not of the form"),
        (("a: federated.mode",), "'federated.mode' is not of the form KEY=VALUE"),
        (("a: x=1", "a: y=2"), "two settings are named 'a'"),
    ],
)
def test_settings_that_cannot_be_read(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse(AuditConfig(settings=settings))


def test_overrides_are_checked_as_at_the_door():
    config = overridden(
        ExperimentConfig(),
        ("data.image_size=32", "model.pretrained=", "name=a b", "model.norm=none"),
        "here",
    )
    assert config.model.norm == "none"
    assert overridden(config, AuditConfig().overrides, "here").model.norm == "none"
    assert config.data.image_size == 32 and config.name == "a b"
    for word, message in (
        ("data.image_sise=32", "did you mean 'image_size'"),
        ("dota.image_size=32", "here: there is no config.dota.image_size"),
        ("federated.rounds=0", "must lie in"),
        ("training.class_weights=maybe", "expected bool"),
    ):
        with pytest.raises(ConfigError, match=message):
            overridden(ExperimentConfig(), (word,), "here")
    with pytest.raises(ConfigError, match="reference = 'plain' is none of a, b"):
        parse(AuditConfig(settings=("a:",), defences=("b:",), reference="plain"))


def test_truth_is_what_the_step_was_given():
    """`Learner.enter` gives what `Learner.train` trains on: with one leaf moved, so is the loss."""
    config = from_config_dict(ExperimentConfig, tiny().to_dict())
    learner = local_training.make_learner(config, Classification(("a", "b", "c")))
    template = local_training.template(learner.module, 16, 1)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (4, 16, 16, 1)).astype(np.uint8)
    at = local_training.Step(np.uint32(1), np.uint32(2), np.uint32(0))
    entered, targets = learner.enter(images, np.array([0, 1, 2, 0]), np.uint32(0), at)
    assert entered.shape == (4, 16, 16, 1) and float(entered.min()) >= 0
    assert targets.argmax(-1).tolist() == [0, 1, 2, 0]
    other, _ = learner.enter(
        images, np.array([0, 1, 2, 0]), np.uint32(0), at._replace(step=np.uint32(1))
    )
    assert not np.allclose(entered, other)  # augmentation is drawn anew at every step
    assert variables.to_vectors(zeros).moments.size == 0


@pytest.mark.slow
def test_actors_record_what_one_process_records(runs, tmp_path):
    config = tiny("federated_secure")
    config.runtime.driver = "ray"
    config.runtime.threads = 1
    primia_jax.train(config, tmp_path)
    for path in ("checkpoints", "sites/hospital_1"):
        name = f"{path}/recorded/round_000002.npz"
        with np.load(tmp_path / name) as here, np.load(runs["federated_secure"] / name) as there:
            assert sorted(here) == sorted(there)
            for key in here:
                np.testing.assert_array_equal(here[key], there[key])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["record", "client"])
def test_runs_with_differential_privacy_can_be_attacked(tmp_path, mode):
    """Samples of any size are the truth of DP-SGD's steps; of clients the noised sum is seen."""
    config = tiny("federated" if mode == "record" else "federated_secure", rounds=1)
    config.privacy.mode = mode
    primia_jax.train(config, tmp_path)
    found, _ = run_views(tmp_path)
    for case in found.cases:
        own = recording.read_images(tmp_path / "sites" / case.hospitals[0])
        assert len(case.images) == len(case.records) and case.records.max() < len(own)
    assert any("differential privacy" in note for note in found.notes)
