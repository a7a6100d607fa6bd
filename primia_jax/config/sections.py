"""Every setting of an experiment, with its default, its allowed values and what it means.

Those of searches and studies stand in `studies.py`.
"""

import dataclasses

from primia_jax.config.schema import check_section, section, setting
from primia_jax.config.studies import (
    AuditConfig,
    LatencyStudyConfig,
    StudyConfig,
    TuningConfig,
)


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """The bundled generator of paediatric chest radiographs (`primia_jax.data.phantom`)."""

    n_train: int = setting(900, "images for training and validation, over all hospitals", low=12)
    n_test: int = setting(300, "held-out test images, over all hospitals", low=3)
    site_shift: float = setting(1.0, "strength of scanner differences (0: none)", low=0, high=3)
    difficulty: float = setting(
        1.0, "subtlety of the findings and strength of noise", low=0, high=3
    )
    scanner: int = setting(
        0, "first scanner of the family, one a hospital; from 100 on another country's", low=0
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The source of the images, and their division among hospitals and sets."""

    source: str = setting(
        "phantom", "kind of source", choices=("phantom", "folder", "dicom", "tfds", "csv")
    )
    path: str = setting(
        "",
        "folder, CSV file or TFDS directory; `{site}` in it makes each hospital read its own",
        is_path=True,
    )
    test_path: str = setting(
        "", "the model owner's held-out data; else `test_fraction` of `path`", is_path=True
    )
    classes: tuple[str, ...] = setting(
        (), "class names, in order; a source may then lack some (empty: those of the source)"
    )
    image_size: int = setting(64, "side of the square images, in pixels", low=8, high=1024)
    masks: bool = setting(False, "read the masks of structures too (task segmentation: always)")
    on_error: str = setting("fail", "what to do with unreadable files", choices=("fail", "skip"))
    dicom_guard: str = setting(
        "refuse",
        "what to do with DICOM images that are no frontal chest radiographs",
        choices=("refuse", "warn", "off"),
    )
    dicom_modalities: tuple[str, ...] = setting(("CR", "DX"), "that the guard allows (empty: any)")
    dicom_body_parts: tuple[str, ...] = setting(
        ("CHEST", "THORAX", "LUNG"), "words of the body part that the guard allows (empty: any)"
    )
    dicom_views: tuple[str, ...] = setting(("PA", "AP"), "that the guard allows (empty: any)")
    validation_fraction: float = setting(0.15, "of each hospital's patients", low=0.01, high=0.5)
    test_fraction: float = setting(
        0.2, "of the patients, where no test set is given", low=0, high=0.5
    )
    partition: str = setting(
        "given",
        "how patients are spread over hospitals",
        choices=("given", "iid", "dirichlet", "size"),
    )
    seed: int = setting(
        -1, "of phantoms, splits and partition (-1: config.seed)", low=-1, high=2**31 - 1
    )
    dirichlet_alpha: float = setting(0.5, "label skew: small is skewed", low=0.01, high=1000)
    size_ratio: float = setting(4.0, "largest hospital over smallest one", low=1, high=100)
    phantom: PhantomConfig = section(PhantomConfig)


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of the training images; every one has a probability and a strength.

    A probability of 0 removes the operation from the compiled step.
    """

    rotation_p: float = setting(1.0, "probability of a rotation", low=0, high=1)
    rotation_degrees: float = setting(10.0, "largest angle, either way", low=0, high=180)
    scale_p: float = setting(1.0, "probability of a zoom", low=0, high=1)
    scale: float = setting(0.1, "largest relative zoom, either way", low=0, high=0.9)
    translation_p: float = setting(1.0, "probability of a shift", low=0, high=1)
    translation: float = setting(0.05, "largest shift, as a fraction of the side", low=0, high=1)
    flip_p: float = setting(0.0, "probability of a left-right flip", low=0, high=1)
    brightness_p: float = setting(0.5, "probability of added brightness", low=0, high=1)
    brightness: float = setting(0.1, "largest addition, either way", low=0, high=1)
    gamma_p: float = setting(0.5, "probability of a gamma change", low=0, high=1)
    gamma: float = setting(0.2, "exponent drawn from exp(±gamma)", low=0, high=3)
    noise_p: float = setting(0.5, "probability of Gaussian noise", low=0, high=1)
    noise: float = setting(0.02, "largest standard deviation", low=0, high=1)
    blur_p: float = setting(0.0, "probability of a Gaussian blur", low=0, high=1)
    blur_pixels: float = setting(1.0, "largest standard deviation, in pixels", low=0, high=10)
    elastic_p: float = setting(0.0, "probability of an elastic distortion", low=0, high=1)
    elastic: float = setting(0.02, "displacement, as a fraction of the side", low=0, high=0.5)
    grid_p: float = setting(0.0, "probability of a grid distortion", low=0, high=1)
    grid: float = setting(
        0.05, "displacement of grid lines, as a fraction of the side", low=0, high=0.5
    )
    equalise_p: float = setting(0.0, "probability of CLAHE-like equalisation", low=0, high=1)
    equalise_clip: float = setting(2.0, "contrast limit over a flat histogram", low=1, high=40)
    mixup_p: float = setting(0.0, "probability that a batch is mixed", low=0, high=1)
    mixup_alpha: float = setting(0.2, "parameter of the Beta distribution", low=0.01, high=10)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str = setting(
        "resnet18",
        "architecture, or `module:object` of your own (docs/own_parts.md)",
        choices=("resnet18", "resnet34", "vgg16", "simple", "unet"),
        custom=True,
    )
    stem: str = setting(
        "imagenet", "of resnets: 7×7/2 and pooling, or 3×3", choices=("imagenet", "small")
    )
    pooling: str = setting("max", "pooling (of the stem, in resnets)", choices=("max", "avg"))
    norm: str = setting(
        "batch",
        "normalisation (none: not for resnets)",
        choices=("batch", "group", "frozen", "none"),
    )
    channels: int = setting(1, "input channels; grey images are repeated for 3", choices=(1, 3))
    width: int = setting(
        64, "channels of the first stage (`simple`: 16, `unet`: 8 is enough)", low=4, high=256
    )
    pretrained: str = setting("", "torchvision-named weights, .safetensors or .pth", is_path=True)
    convolution: str = setting("auto", "how convolutions run", choices=("auto", "xla", "im2col"))


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The local optimiser and its schedule."""

    batch_size: int = setting(16, "images a local step", low=1, high=4096)
    optimizer: str = setting("adam", "local optimiser", choices=("adam", "adamw", "sgd"))
    learning_rate: float = setting(1e-3, "at the start", low=0, high=10)
    end_learning_rate: float = setting(1e-5, "at the end", low=0, high=10)
    schedule: str = setting(
        "log_linear", "shape over the global step", choices=("constant", "log_linear", "cosine")
    )
    restarts: int = setting(0, "times the schedule starts again", low=0, high=100)
    beta1: float = setting(0.9, "Adam's first decay, or SGD's momentum", low=0, high=0.9999)
    beta2: float = setting(0.99, "Adam's second decay", low=0, high=0.999999)
    weight_decay: float = setting(
        5e-4, "L2 added to the gradient (adamw: decoupled)", low=0, high=1
    )
    class_weights: bool = setting(True, "weight the loss by securely summed class counts")
    loss: str = setting(
        "task",
        "the task's, or `module:function` of your own (docs/own_parts.md)",
        choices=("task",),
        custom=True,
    )
    label_smoothing: float = setting(0.0, "share given to all classes alike", low=0, high=0.9)


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    """Local early stopping (see `primia_jax.federated.early_stopping`)."""

    enabled: bool = setting(False, "watch the local validation loss within a round")
    check_every: int = setting(5, "local steps between checks", low=1)
    patience: int = setting(3, "checks without improvement that end a site's round", low=1)
    stop_after_rounds: int = setting(
        5, "rounds without improvement that end a site's training", low=1
    )


@dataclasses.dataclass(frozen=True)
class FederatedConfig:
    """The hospitals that train, the interval of averaging, and its rule."""

    mode: str = setting(
        "federated_secure", "setting", choices=("local", "federated", "federated_secure")
    )
    hospitals: int = setting(3, "number of hospitals", low=1, high=1000)
    rounds: int = setting(20, "times the models are averaged", low=1)
    participation: float = setting(
        1.0, "fraction of the hospitals that is drawn for a round", low=0.001, high=1
    )
    sampling: str = setting(
        "fixed", "how they are drawn: so many, or each by chance", choices=("fixed", "poisson")
    )
    quorum: float = setting(
        0.5, "fraction of the hospitals that must be there for a round to go on", low=0, high=1
    )
    sync_every: int = setting(1, "local steps or epochs a round", low=1)
    sync_unit: str = setting("epochs", "unit of `sync_every`", choices=("steps", "epochs"))
    rule: str = setting(
        "fedavg",
        "aggregation rule, or `module:object` of your own (docs/own_parts.md)",
        choices=("fedavg", "fedprox", "fedadam", "fedyogi"),
        custom=True,
    )
    robust: str = setting(
        "none",
        "average that bad updates cannot pull away, in the clear (none: by samples)",
        choices=("none", "trimmed_mean", "median", "krum"),
    )
    bad_hospitals: int = setting(1, "robust averages: bad ones provided for", low=0, high=499)
    proximal_mu: float = setting(0.01, "FedProx: weight of the proximal term", low=0, high=100)
    server_learning_rate: float = setting(0.01, "FedAdam, FedYogi", low=0, high=10)
    server_tau: float = setting(1e-3, "FedAdam, FedYogi: degree of adaptivity", low=1e-8, high=1)
    batch_norm: str = setting(
        "pooled",
        "moments of batch norm: pooled exactly, or local (FedBN)",
        choices=("pooled", "fedbn"),
    )
    optimizer_state: str = setting(
        "keep", "local optimiser state over a synchronisation", choices=("keep", "reset", "average")
    )
    update_clip: float = setting(
        0.0, "longest change of the weights that a hospital gives away (0: any)", low=0
    )
    update_noise: float = setting(
        0.0,
        "deviation of the noise that it adds to the change, over update_clip; proves no privacy",
        low=0,
        high=1000,
    )
    record_updates: bool = setting(
        False, "keep what an audit needs: costs disk, and shows a hospital's images to its own disk"
    )
    identities: str = setting(
        "",
        "folder of a party's long-lived signature key, on its own machine; `{site}` in it is the "
        "party's name (empty: its folder of the run)",
    )
    pins: str = setting(
        "",
        "JSON file {NAME: FINGERPRINT} of the parties' keys, read by each party; `{site}` in it is "
        "the reader's name (empty: a key is trusted when first met, and from then on)",
    )
    record_rounds: tuple[int, ...] = setting((), "rounds that are recorded (empty: all)", low=1)
    early_stopping: EarlyStoppingConfig = section(EarlyStoppingConfig)


@dataclasses.dataclass(frozen=True)
class SecureAggregationConfig:
    """Fixed point in Z_2^64 or Z_2^32; the sum is proven not to overflow, or refused.

    `secagg` goes on when hospitals drop out; who masks with whom, and how many must stay, follows
    from the four options after `scheme` (see `primia_jax.federated.secagg_graph`).
    """

    scheme: str = setting(
        "auto",
        "additive shares, or pairwise masks that survive dropouts (auto: beyond 5 hospitals, where "
        "there is a graph)",
        choices=("auto", "additive", "secagg"),
    )
    dropouts: float = setting(0.3, "secagg: part of the hospitals that may drop out", low=0, high=1)
    colluders: float = setting(
        0.1, "secagg: part of the hospitals, at least 1, that may help the owner", low=0, high=1
    )
    security_bits: int = setting(
        40, "secagg: σ, more help or a sum over fewer has a chance of 2^-σ", low=10, high=128
    )
    correctness_bits: int = setting(
        30, "secagg: η, a round with such dropouts fails with a chance of 2^-η", low=5, high=128
    )
    stage_deadline_s: float = setting(
        300.0,
        "secagg: longest wait for a hospital in a stage in which it does not train",
        low=0.001,
    )
    min_participants: int = setting(
        0,
        "fewest hospitals that a sum may be over (0: 3); of a sum over 2 each learns the other's "
        "update, which must be wanted by name",
        low=0,
        high=1000,
    )
    word_bits: int = setting(
        64,
        "of what is summed: 32 halve masks and what hospitals send, where frac_bits, clip and "
        "max_samples are set as tight as the data allow",
        choices=(32, 64),
    )
    frac_bits: int = setting(24, "fractional bits", low=1, high=52)
    clip: float = setting(2048.0, "largest magnitude of an averaged value", low=1e-6, high=2**40)
    max_samples: int = setting(
        1 << 17, "public bound on one hospital's samples", low=1, high=2**29 - 1
    )

    @property
    def fewest_participants(self) -> int:
        """`min_participants` with its default filled in."""
        return self.min_participants or 3


@dataclasses.dataclass(frozen=True)
class MpcConfig:
    """Encrypted inference: the protocol, its ring, its comparisons and its rounding.

    `frac_bits`, `margin` and `separable_pooling` are for all protocols, `prg_rounds` for fss and
    ariann; of the rest, what names a protocol is for that one, and all else for fss.
    """

    protocol: str = setting(
        "fss",
        "how the parties compute; the other two are published ones, to compare with",
        choices=("fss", "ariann", "securenn"),
    )
    ring_bits: int = setting(32, "n, of fss's ring Z_2^n", choices=(24, 28, 32, 64))
    ariann_compare_bits: int = setting(
        32,
        "that ariann compares: b of them give a wrong sign |x| / 2^b of the time",
        choices=(32, 64),
    )
    effective_bits: int = setting(
        16, "k, signed bits that a layer's values take after truncation, at most", low=4, high=32
    )
    sign_slack_bits: int = setting(
        -1, "low bits of a value that its sign ignores (-1: by sign_tolerance)", low=-1, high=30
    )
    sign_tolerance: float = setting(
        0.03,
        "width of the window around 0 in which a sign may be wrong, over a layer's RMS",
        low=0,
        high=1,
    )
    frac_bits: int = setting(
        0,
        "fractional bits of every layer's values (0: as the layer's range allows; 13 in ariann and "
        "securenn)",
        high=24,
    )
    margin: float = setting(
        1.25, "range provided for, over the largest one of calibration", low=1, high=64
    )
    headroom_bits: int = setting(
        8,
        "most bits of fss's ring above a layer's range, by which values out of range are detected "
        "(0: they are not)",
        high=8,
    )
    output_bits: int = setting(
        16, "of an output within its range; fss hides the bits below by noise", low=8, high=32
    )
    prg_rounds: int = setting(12, "ChaCha rounds of the comparison trees", choices=(8, 12, 20))
    leaf_bits: int = setting(8, "ν, bits of a comparison that one leaf answers", low=7, high=9)
    arity: int = setting(2, "children of a node of the comparison trees", choices=(2, 4))
    separable_pooling: bool = setting(True, "pool rows, then columns (fewer comparisons)")

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that is not allowed, whoever makes the section."""
        check_section(self, "mpc.")


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy (see `primia_jax.federated.privacy` and docs/privacy.md)."""

    mode: str = setting(
        "none",
        "protects the records of each hospital (record), or whole hospitals in the sum (client)",
        choices=("none", "record", "client"),
    )
    unit: str = setting(
        "image",
        "record: protects each image, or all images that a hospital has of a patient",
        choices=("image", "patient"),
    )
    images_per_patient: int = setting(
        4, "unit = patient: images of a patient that a step uses at most", low=1, high=64
    )
    epsilon: float = setting(8.0, "that the run's noise is made for", low=0.01, high=1000)
    delta: float = setting(1e-5, "chance beyond ε; far below 1 / images", low=1e-12, high=0.1)
    noise_multiplier: float = setting(
        0.0, "deviation of the noise over the clip (0: found from epsilon)", low=0, high=500
    )
    clip_norm: float = setting(
        1.0, "longest gradient of a unit (record), or update of a hospital (client)", low=1e-6
    )
    budget: float = setting(
        0.0, "largest ε of everything in a hospital's ledger (0: epsilon)", low=0, high=1000
    )
    ledger: str = setting(
        "",
        "folder of the hospitals' ledgers, where several runs share them (empty: sites/)",
        is_path=True,
    )
    statistics_noise: float = setting(
        4.0,
        "record: noise multiplier of pixel statistics and class counts (0: constants, no release)",
        low=0,
        high=500,
    )
    validation: str = setting(
        "noised",
        "confusion matrices go out with noise, not at all (the last model is kept), or as they are",
        choices=("noised", "none", "exact"),
    )
    missing_hospitals: int = setting(
        1, "client: hospitals whose noise may be lacking: gone, or curious and taking it off", low=0
    )
    microbatch_size: int = setting(
        0, "record: images whose gradients are computed at a time (0: by network)", low=0, high=1024
    )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The evaluation of the final model."""

    batch_size: int = setting(64, "images at a time", low=1)
    bootstrap: int = setting(1000, "resamples behind each 95 % interval", low=10, high=100000)
    images: str = setting(
        "validation",
        "of each hospital, that a --checkpoint is judged on; all only if it was trained on none",
        choices=("validation", "all"),
    )


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    """Processes, threads and patience."""

    driver: str = setting("ray", "real actors, or all in this process", choices=("ray", "local"))
    ray_auth: str = setting(
        "token",
        "what a Ray cluster that is joined must ask for; none: whoever reaches it can run code as "
        "any party",
        choices=("token", "none"),
    )
    data_owner_folder: str = setting(
        "", "folder of the data owner's diagnoses (empty: data_owner/ in the workdir)"
    )
    threads: int = setting(
        0,
        "threads of an actor, part of what makes runs bit-identical (0: cores / hospital actors)",
        low=0,
        high=1024,
    )
    cpus_per_hospital: float = setting(
        0.01,
        "Ray CPUs of a hospital's actor; a little keeps it off nodes without",
        low=0,
        high=1024,
    )
    gpus_per_hospital: float = setting(0.0, "Ray GPUs of a hospital's actor", low=0, high=64)
    hospital_resource: str = setting(
        "", "custom Ray resource of the nodes of a hospital, {site} for its name (empty: any node)"
    )
    hospital_actors: int = setting(
        0, "Ray actors that all (simulated) hospitals share, a turn each (0: one each)", low=0
    )
    message_timeout_s: float = setting(3600.0, "longest wait for a message", low=1)
    round_deadline_s: float = setting(
        0.0,
        "ray: whoever still computes then is ended and started again (0: none)",
        low=0,
    )
    revive_timeout_s: float = setting(
        60.0,
        "how long a round waits for a lost party that was started again, and the start for the "
        "node of a hospital (config.runtime.hospital_resource)",
        low=0,
    )
    retries: int = setting(5, "times that one round is begun again after losses", low=0)
    latency_s: float = setting(
        0.0, "one-way latency of every link (virtual or injected)", low=0, high=10
    )
    bandwidth_bps: float = setting(0.0, "bandwidth of every link in bit/s (0: unlimited)", low=0)
    jitter_s: float = setting(0.0, "standard deviation added to the latency", low=0, high=10)
    mlflow: str = setting(
        "", "MLflow server or folder that a training is logged to (empty: none)", is_path=True
    )


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: what `configs/NAME.py` describes."""

    name: str = setting("experiment", "title of the report")
    seed: int = setting(0, "seed of everything that only shuffles", low=0, high=2**31 - 1)
    task: str = setting(
        "classification",
        "a class of the image, or a structure of each pixel (model unet)",
        choices=("classification", "segmentation"),
    )
    data: DataConfig = section(DataConfig)
    augmentation: AugmentationConfig = section(AugmentationConfig)
    model: ModelConfig = section(ModelConfig)
    training: TrainingConfig = section(TrainingConfig)
    federated: FederatedConfig = section(FederatedConfig)
    secure_aggregation: SecureAggregationConfig = section(SecureAggregationConfig)
    privacy: PrivacyConfig = section(PrivacyConfig)
    mpc: MpcConfig = section(MpcConfig)
    latency_study: LatencyStudyConfig = section(LatencyStudyConfig)
    audit: AuditConfig = section(AuditConfig)
    tuning: TuningConfig = section(TuningConfig)
    study: StudyConfig = section(StudyConfig)
    evaluation: EvaluationConfig = section(EvaluationConfig)
    runtime: RuntimeConfig = section(RuntimeConfig)
