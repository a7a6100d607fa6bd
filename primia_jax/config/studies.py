"""The settings of what is done with many trainings or runs: latency study, search, audit, study."""

import dataclasses

from primia_jax.config.schema import setting


@dataclasses.dataclass(frozen=True)
class LatencyStudyConfig:
    """The latency study: which networks run encrypted, by which protocols, over which links."""

    networks: tuple[str, ...] = setting(
        ("lenet", "resnet18_64", "resnet18_224"), "networks with the side of their images"
    )
    protocols: tuple[str, ...] = setting(
        ("fss", "ariann", "securenn"), "protocols that are compared"
    )
    pooling: str = setting("avg", "pooling of the networks", choices=("max", "avg"))
    latencies_ms: tuple[float, ...] = setting(
        (0.0, 10.0, 50.0, 100.0), "one-way latencies, in milliseconds", low=0, high=10000
    )
    bandwidths_mbps: tuple[float, ...] = setting(
        (10000.0, 1000.0, 100.0), "bandwidths, in Mbit/s (0: unlimited)", low=0
    )
    repetitions: int = setting(
        20, "images with fresh keys, each judged under every link", low=2, high=10000
    )
    validated: str = setting(
        "resnet18_64", "network repeated over real actors with real delays (empty: none)"
    )
    validation_latencies_ms: tuple[float, ...] = setting(
        (10.0, 100.0), "delays of these, in milliseconds", low=0, high=10000
    )
    validation_repetitions: int = setting(3, "repetitions of these, of one image", low=1, high=1000)


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """The search for good options (`primia_jax.campaigns.tuning`); a trial is one training."""

    space: tuple[str, ...] = setting(
        (),
        "what is searched: 'SETTING log|uniform LOW HIGH' or 'SETTING choice VALUE VALUE …'",
    )
    trials: int = setting(30, "trainings with settings of their own", low=1, high=100000)
    parallel: int = setting(1, "trials at a time, each with parties of its own", low=1, high=256)
    startup_trials: int = setting(
        8,
        "trials drawn at random, before the sampler and the pruner judge by what they gave",
        low=1,
    )
    pruning: bool = setting(True, "end a trial whose best MCC is below the median at its round")
    warmup_rounds: int = setting(3, "rounds that every trial is given", low=0)


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """The audit: which runs' updates are attacked, by what, and what the attacker knows.

    A run's settings stand behind its name as in "large batches: training.batch_size=16". A run of
    mode local takes the batches of all hospitals together as its own, unless it names
    training.batch_size.
    """

    settings: tuple[str, ...] = setting(
        (
            "local: federated.mode=local federated.participation=1.0",
            "federated: federated.mode=federated",
            "federated_secure: federated.mode=federated_secure",
        ),
        "runs that are attacked and tested against one another",
    )
    defences: tuple[str, ...] = setting((), "further runs, each held against the reference")
    reference: str = setting("federated", "the setting that defences are held against")
    overrides: tuple[str, ...] = setting(
        (
            "data.image_size=32",
            "model.name=simple",
            "model.norm=none",
            "model.pooling=max",
            "model.pretrained=",
            "training.optimizer=sgd",
            "training.beta1=0.0",
            "training.weight_decay=0.0",
            "training.batch_size=1",
            "training.learning_rate=0.05",
            "training.schedule=constant",
            "federated.sync_unit=steps",
            "federated.sync_every=1",
            "federated.rule=fedadam",
            "federated.server_learning_rate=0.001",
            "federated.server_tau=1e-6",
            "federated.optimizer_state=reset",
            "federated.batch_norm=pooled",
            "federated.early_stopping.enabled=false",
            "federated.rounds=90",
            f"federated.record_rounds={tuple(range(1, 31))}",
            "runtime.driver=local",
        ),
        "of the runs that a study trains for its table of inversions",
    )
    attack: str = setting(
        "inverting_gradients",
        "Geiping et al. 2020, or Zhu et al. 2019",
        choices=("inverting_gradients", "deep_leakage"),
    )
    steps: int = setting(120, "of an attack on one update", low=1)
    restarts: int = setting(1, "starts of an attack; the best match counts", low=1, high=1000)
    learning_rate: float = setting(0.1, "inverting gradients: of its first steps", low=0, high=10)
    total_variation: float = setting(0.02, "inverting gradients: weight", low=0, high=1000)
    images: int = setting(30, "attacked in each setting, at least", low=1)
    defence_images: int = setting(30, "attacked under each defence, at least", low=1)
    largest_update: int = setting(64, "most images behind an update that is attacked", low=1)
    checkpoint: str = setting(
        "start", "rounds attacked: of which third of the run", choices=("start", "middle", "end")
    )
    labels_known: bool = setting(False, "whether the attacker knows the labels, else infers them")
    moments_known: bool = setting(False, "whether moments of batch norm that came back are used")
    norm_mode: str = setting(
        "train", "moments that batch norm is taken to use in local steps", choices=("train", "eval")
    )
    sizes_known: bool = setting(True, "whether each hospital's number of images is known")
    gallery: int = setting(
        50, "an image and decoys of its hospital, at most, among which it is sought", low=2
    )
    features: str = setting(
        "",
        "for FID and KID: a run's folder, or torchvision weights of a ResNet-18 (empty: random)",
        is_path=True,
    )
    splits: int = setting(20, "halvings behind the floor and the ceiling", low=2, high=10000)
    bootstrap: int = setting(200, "resamples behind intervals of FID and KID", low=10, high=100000)
    control_steps: int = setting(400, "of the control attack (0: no control)", low=0)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The study: models of each mode from the same start, over seeds, judged beside readers."""

    seeds: tuple[int, ...] = setting(
        (0, 1, 2),
        "of the trainings (first model, order, augmentation); the images are those of data.seed",
        low=0,
        high=2**31 - 1,
    )
    modes: tuple[str, ...] = setting(
        ("federated_secure", "federated", "local"),
        "what is compared; federated_secure and local are always among them",
    )
    pooled_batch: bool = setting(
        True, "mode local takes the batches of all hospitals together as its own"
    )
    readers: str = setting(
        "",
        "CSV file of human readings of Test Set 1 (image,reader,label); empty: none",
        is_path=True,
    )
    min_readers: int = setting(
        2, "readers that the file must have; 1 goes without agreement between readers", low=1
    )
    second_test_path: str = setting(
        "",
        "images of Test Set 2; phantoms have their own, others do without if it is empty",
        is_path=True,
    )
    second_scanner: int = setting(
        100, "phantoms: first scanner of Test Set 2, see data.phantom.scanner", low=0
    )
    second_n_test: int = setting(352, "phantoms: films of Test Set 2", low=3)
    min_per_class: int = setting(
        5, "images that every set must have of each class, to be judged at all", low=2
    )
    margin: float = setting(
        0.02, "difference in MCC that counts as none (equivalence margin)", low=1e-6, high=1
    )
    inversion: bool = setting(True, "attack the three modes too, as config.audit says")
