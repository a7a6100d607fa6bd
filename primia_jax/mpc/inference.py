"""Encrypted inference of any network that can be lowered: the interface for research code.

    program = mpc.encrypt(apply_fn, params, example, calibration=images)
    logits, trace = program.run(images, latency_s=0.1, bandwidth_bps=1e9)

`run` plays all parties in this process, each with a virtual clock; `primia_jax.predict_encrypted`
puts the same parties into Ray actors.
"""

import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primia_jax.config.sections import MpcConfig
from primia_jax.core.locks import Hold
from primia_jax.errors import ConfigError, ProtocolError
from primia_jax.mpc import calibration, sessions
from primia_jax.mpc.calibration import PrecisionWarning, plan_ranges
from primia_jax.mpc.circuit import check_image
from primia_jax.mpc.plan import Plan
from primia_jax.mpc.protocols import DATA_OWNER, PARTIES
from primia_jax.mpc.protocols.choice import PROTOCOLS
from primia_jax.mpc.scaling import Overflow, Ranges
from primia_jax.mpc.secure_jaxpr import lower
from primia_jax.runtime import Link, LocalDriver, Trace


def encrypt(
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    example: Any,
    *,
    calibration: Any,
    config: MpcConfig = MpcConfig(),  # noqa: B008
) -> "SecureProgram":
    """Makes a network ready to run encrypted.

    Args:
      apply_fn: `apply_fn(params, images)` gives the logits, or a pytree of outputs.
      params: the network's parameters.
      example: images, or their shape and type, with the batch axis first: [n ...].
      calibration: images [m ...] of the model owner's, which show the range of every layer.
      config: protocol, ring, comparisons.

    Raises:
      ProtocolError: for an operation that cannot run encrypted; names it, its layer and its line.
      ConfigError: for settings that do not go together.
    """
    apply_fn, params = _without_keys(apply_fn, params)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)), params
    )
    calibration = np.asarray(calibration, np.float32)
    if calibration.shape[1:] != np.shape(example)[1:]:
        raise ConfigError(
            f"the network is made for images {list(np.shape(example)[1:])}, calibration has "
            f"{list(calibration.shape[1:])}"
        )
    plan = lower_network(apply_fn, shapes, example, config)
    ranges, remarks = calibrated(apply_fn, params, calibration, config)
    for line in remarks:
        warnings.warn(line, PrecisionWarning, stacklevel=2)
    return SecureProgram(apply_fn, params, plan, ranges, config)


def _without_keys(
    apply_fn: Callable[[Any, Any], Any], params: Any
) -> tuple[Callable[[Any, Any], Any], Any]:
    """The network with random keys among its parameters fixed, as NNX keeps them for dropout.

    They are no weights. A network that draws from them is refused when it is lowered.
    """
    leaves, tree = jax.tree.flatten(params)
    is_key = [jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) for leaf in leaves]
    if not any(is_key):
        return apply_fn, params

    def apply_to_weights(weights: list[Any], images: Any) -> Any:
        rest = iter(weights)
        merged = [leaf if key else next(rest) for leaf, key in zip(leaves, is_key)]
        return apply_fn(jax.tree.unflatten(tree, merged), images)

    return apply_to_weights, [leaf for leaf, key in zip(leaves, is_key) if not key]


def lower_network(
    apply_fn: Callable[[Any, Any], Any], params: Any, example: Any, config: MpcConfig
) -> Plan:
    """The plan of a network, from shapes alone."""
    shape = jax.ShapeDtypeStruct(np.shape(example), jnp.float32)
    return lower(apply_fn, params, shape, separable_pooling=config.separable_pooling)


_CALIBRATION_BATCH = 8


def calibrated(
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    images: np.ndarray,
    config: MpcConfig,
    image_range: float = 0.0,
) -> tuple[Ranges, list[str]]:
    """Finds the ranges of a network's layers, and what is wrong or coarse with them.

    Takes and raises what `find_ranges` does.

    Returns:
      the ranges, which are public; and lines for the model owner alone, see `calibration.remarks`.
    """
    ranges, single, batched = _calibrate(apply_fn, params, images, config, image_range)
    circuit = PROTOCOLS[config.protocol].circuit(single, ranges, config)
    return ranges, calibration.remarks(circuit, batched, ranges, params, images)


def find_ranges(
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    images: np.ndarray,
    config: MpcConfig,
    image_range: float = 0.0,
) -> Ranges:
    """The ranges that layers are provided with, from `images` [m ...] of the model owner's.

    They are public: powers of two, see `Protocol.published`.

    Args:
      apply_fn, params, config: as in `encrypt`.
      images: calibration images.
      image_range: largest magnitude of any image, where it is known; 0: that of `images`.

    Raises:
      ConfigError: without any image, or if they or the weights are not finite.
    """
    return _calibrate(apply_fn, params, images, config, image_range)[0]


def _calibrate(
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    images: np.ndarray,
    config: MpcConfig,
    image_range: float,
) -> tuple[Ranges, Plan, Plan]:
    """See `find_ranges`; returns the plans for one image and for several as well."""
    if not images.ndim or not len(images):
        raise ConfigError("calibration needs at least one image, with the batch axis first")

    def plan_for(size: int) -> Plan:
        example = jax.ShapeDtypeStruct((size, *images.shape[1:]), np.float32)
        return lower_network(apply_fn, params, example, config)

    single, batched = plan_for(1), plan_for(min(_CALIBRATION_BATCH, len(images)))
    ranges = plan_ranges(batched, params, images)
    if image_range:
        ranges = ranges._replace(image=image_range)
    return PROTOCOLS[config.protocol].published(single, params, ranges, config), single, batched


class OutOfRangeWarning(UserWarning):
    """Values left the range that the network was calibrated for: the result may be wrong."""


class SecureProgram:
    """A network that runs encrypted.

    Attributes:
      circuit: its public description.
      ranges: what calibration saw.
      offline_trace: cost of the set-up and of the keys made last.
      out_of_range: layers that left their range in the last run, known to the data owner alone;
        None if the protocol cannot tell.
    """

    def __init__(
        self,
        apply_fn: Callable[[Any, Any], Any],
        params: Any,
        plan: Plan,
        ranges: Ranges,
        config: MpcConfig,
    ):
        self._apply_fn, self._params = apply_fn, params
        self.ranges, self.config = ranges, config
        self.protocol = PROTOCOLS[config.protocol]
        self.circuit = self.protocol.circuit(plan, ranges, config)
        self.set_up_trace: Trace | None = None
        self.offline_trace: Trace | None = None
        self.out_of_range: tuple[str, ...] | None = None
        self._driver: LocalDriver | None = None
        self._holds: list[Hold] = []  # of the session's folders
        self._others: dict[int, SecureProgram] = {}

    @property
    def batch_size(self) -> int:
        """Images of one run."""
        return self.circuit.plan.image.shape[0]

    def for_batch(self, size: int) -> "SecureProgram":
        """The same network for `size` images at a time, with the same calibration."""
        if size == self.batch_size:
            return self
        if size not in self._others:
            example = jax.ShapeDtypeStruct((size, *self.circuit.plan.image.shape[1:]), np.float32)
            plan = lower_network(self._apply_fn, self._params, example, self.config)
            self._others[size] = SecureProgram(
                self._apply_fn, self._params, plan, self.ranges, self.config
            )
        return self._others[size]

    def calibrate(self, images: Any) -> "SecureProgram":
        """The same network with the ranges of other images."""
        ranges, remarks = calibrated(
            self._apply_fn, self._params, np.asarray(images, np.float32), self.config
        )
        for line in remarks:
            warnings.warn(line, PrecisionWarning, stacklevel=2)
        return SecureProgram(self._apply_fn, self._params, self.circuit.plan, ranges, self.config)

    def set_up(self, folder: str | os.PathLike[str] | None = None) -> Trace | None:
        """Starts a session: new seeds, and the masked weights to the data owner.

        Args:
          folder: where the session and its keys are kept, so that they outlive this process; a
            session that is there already is taken up again. Without it all stays in memory.

        Returns:
          what the set-up cost; None for a session taken up again.

        Raises:
          ProtocolError: if the session in `folder` is one of another network or other weights, or
            if a ledger of its used keys is missing.
          StorageError: if another program has the session in `folder` open.
        """
        self.close()
        kept = pathlib.Path(folder) if folder is not None else None
        protocol = self.protocol
        if kept is not None and not protocol.keys_on_disk:
            raise ConfigError(
                f"config.mpc.protocol = {protocol.name} keeps its keys in memory: set up without "
                "a folder, or take fss"
            )
        if kept is None:
            return self._begin(None)
        holds = sessions.hold(kept)
        try:
            trace = None
            if sessions.exists(kept):
                self._resume(kept)
            else:
                trace = self._begin(kept)
        except BaseException:
            self.close()
            for held in holds:
                held.close()
            raise
        self._holds = holds
        return trace

    def close(self) -> None:
        """Ends the session; one that is kept in a folder can be taken up by another program."""
        self._driver = None
        for held in self._holds:
            held.close()
        self._holds = []

    def _resume(self, kept: pathlib.Path) -> None:
        states = sessions.resume(self.circuit, self._params, kept)
        self._driver = LocalDriver({n: functools.partial(states.get, n) for n in states})
        self._driver.run(dict.fromkeys(states, self.protocol.begin_epoch))

    def _begin(self, kept: pathlib.Path | None) -> Trace:
        protocol, circuit = self.protocol, self.circuit
        if kept is not None:
            states = sessions.begin(circuit, self._params, kept)
        else:
            states = {p: protocol.state(p, circuit, lambda: self._params) for p in PARTIES}
        self._driver = LocalDriver({n: functools.partial(states.get, n) for n in states})
        _, self.set_up_trace = self._driver.run(dict.fromkeys(states, protocol.set_up))
        if kept is not None:
            sessions.save(self._driver.states, kept, self._params)
        return self.set_up_trace

    def prepare(self, n_keys: int = 1) -> Trace:
        """Makes keys for `n_keys` runs, at least one, and returns what that cost.

        Raises:
          ProtocolError: for fewer than one.
        """
        if n_keys < 1:
            raise ProtocolError(f"n_keys = {n_keys}: prepare at least one key")
        if self._driver is None:
            self.set_up()
        assert self._driver is not None
        states = self._driver.states
        first = max(map(self.protocol.next_number, states.values()))
        numbers = tuple(range(first, first + n_keys))
        program = functools.partial(self.protocol.prepare, numbers=numbers)
        _, self.offline_trace = self._driver.run(dict.fromkeys(states, program))
        return self.offline_trace

    def run(
        self,
        images: Any,
        *,
        latency_s: float = 0.0,
        bandwidth_bps: float = 0.0,
        jitter_s: float = 0.0,
        seed: int = 0,
    ) -> tuple[Any, Trace]:
        """Runs the network on `images`, all parties in this process with virtual clocks.

        A key is made first if none is left (`offline_trace` tells its cost).

        Args:
          images: float [n ...], of the batch size that the program was made for, or another one.
          latency_s: one-way latency of every link.
          bandwidth_bps: bits per second of every link; 0 for unlimited.
          jitter_s: of the links.
          seed: of the jitter.

        Returns:
          what `apply_fn` would return, as NumPy arrays; and the cost of the online phase.

        Raises:
          ProtocolError: for images of another shape or out of range.
        """
        images = np.asarray(images)
        if images.ndim and images.shape[0] != self.batch_size and images.shape[0] > 0:
            other = self.for_batch(len(images))
            returned = other.run(
                images,
                latency_s=latency_s,
                bandwidth_bps=bandwidth_bps,
                jitter_s=jitter_s,
                seed=seed,
            )
            self.out_of_range = other.out_of_range
            return returned
        images = check_image(self.circuit, images)
        states = self._driver.states if self._driver else {}
        if not states or not self.protocol.available(states[DATA_OWNER]):
            self.prepare()
        assert self._driver is not None
        driver = self._driver.with_link(Link(latency_s, bandwidth_bps, jitter_s, seed))
        reports, trace = driver.run(self.protocol.programs(images))
        diagnosis = reports[DATA_OWNER]
        self.out_of_range = diagnosis.out_of_range
        if diagnosis.out_of_range:
            layers = ", ".join(diagnosis.out_of_range)
            warnings.warn(
                f"the result may be wrong: values left the calibrated range in {layers}; calibrate "
                "with such images",
                OutOfRangeWarning,
                stacklevel=2,
            )
        return self.as_returned(diagnosis.outputs), trace

    def as_returned(self, outputs: Sequence[Any]) -> Any:
        """Outputs in the form and the types in which `apply_fn` returns them."""
        plan = self.circuit.plan
        typed = [np.asarray(out, dtype) for out, dtype in zip(outputs, plan.out_dtypes)]
        return jax.tree.unflatten(plan.out_tree, typed)

    def check_range(self, image: Any) -> list[Overflow]:
        """The layers whose values leave their range on `image` [n ...], computed in the clear.

        Raises:
          ConfigError: without any image, or if it is not finite.
          ProtocolError: for images of another shape.
        """
        image = np.asarray(image, np.float32)
        wanted = self.circuit.plan.image.shape[1:]
        if image.shape[1:] != wanted:
            raise ProtocolError(f"the network takes images of shape {wanted}, not {image.shape}")
        if not len(image):
            raise ConfigError("there is no image to check")
        plan = self.for_batch(len(image)).circuit.plan
        return list(self.circuit.overflows(plan_ranges(plan, self._params, image)))

    def plaintext(self, images: Any) -> Any:
        """The same program in fixed point in the clear: what `run` gives up to rounding.

        Raises:
          ProtocolError: as `run` does.
        """
        images = np.asarray(images)
        if images.ndim and images.shape[0] != self.batch_size:
            return self.for_batch(len(images)).plaintext(images)
        return self.as_returned(self.protocol.in_the_clear(self.circuit, self._params, images))


def calibrate(program: SecureProgram, images: Any) -> SecureProgram:
    """See `SecureProgram.calibrate`."""
    return program.calibrate(images)


__all__ = [
    "OutOfRangeWarning",
    "Overflow",
    "PrecisionWarning",
    "SecureProgram",
    "calibrate",
    "encrypt",
]
