"""The command line: flags in, one call out.

python -m primia_jax.launch --config=configs/NAME.py [--config.KEY=VALUE …]
    --mode=train|evaluate|predict|demo|benchmark|tune|audit|study --workdir=DIR
    [--input=FILE|FOLDER] [--encrypted] [--checkpoint=FOLDER|FILE] [--resume]
    [--ray_address=HOST:PORT]
python -m primia_jax.launch --mode=export --workdir=DIR [--format=safetensors|orbax]
python -m primia_jax.launch --mode=status [--workdir=DIR]
"""

import os
import pathlib
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import rich.console
from absl import app, flags, logging
from ml_collections import config_flags

from primia_jax import environment
from primia_jax.config import ExperimentConfig, from_config_dict, remarks, resolved
from primia_jax.core.names import printable, user_path
from primia_jax.core.storage import check_regular
from primia_jax.errors import ConfigError, UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with the experiment's settings.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    (
        *("train", "evaluate", "predict", "export", "demo"),
        *("benchmark", "tune", "audit", "study", "status"),
    ),
    "What to do.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the run leaves.")
_INPUT = flags.DEFINE_string("input", None, "predict: an image, a DICOM file or a folder of them.")
_ENCRYPTED = flags.DEFINE_bool(
    "encrypted", False, "predict: neither the model's owner sees the images, nor theirs the model."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "evaluate: the folder of another run or a file of weights, which all hospitals judge.",
)
_RESUME = flags.DEFINE_bool(
    "resume",
    False,
    "train: go on from the last complete round. Other modes: keep what was found or trained.",
)
_FORMAT = flags.DEFINE_enum(
    "format",
    None,
    ("safetensors", "orbax"),
    "export: a file of tensors (the default), or a folder that Orbax reads.",
)
_RAY = flags.DEFINE_string(
    "ray_address",
    None,
    "A running Ray cluster (HOST:PORT, auto); by default RAY_ADDRESS, else one is started.",
)

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM
_PIPE_CLOSED = 128 + signal.SIGPIPE
_HOME = re.compile(r"^(--?(?:config|workdir|input|checkpoint)=)(~.*)$")
_PIPE_WIDTH = 160
_LISTED = 20  # configurations that a message names
_FILE, _KEY = re.compile(r"--?config="), re.compile(r"--?config\.")


def main(arguments: Sequence[str]) -> None:
    """Runs the mode that the flags ask for."""
    if len(arguments) > 1:
        raise ConfigError(
            f"{printable(arguments[1])!r} on the command line belongs to no flag; flags begin with "
            "--, e.g. --resume"
        )
    if logging.get_verbosity() == logging.INFO:  # absl's default
        logging.set_verbosity(logging.FATAL)  # what libraries log through it
    workdir, input_path = _WORKDIR.value or "", _INPUT.value or ""
    if _MODE.value == "status":
        _show_status(workdir)
        return
    if _FORMAT.value and _MODE.value != "export":
        raise ConfigError(f"--format goes with --mode=export, not --mode={_MODE.value}")
    if _MODE.value == "export":
        _export(workdir)
        return
    if _CONFIG.value is None or not workdir:
        raise ConfigError(
            "--config and --workdir are needed, e.g. --config=configs/smoke.py --workdir=runs/1"
        )
    if _MODE.value == "predict" and not input_path:
        raise ConfigError("--mode=predict needs --input=FILE|FOLDER")
    if _CHECKPOINT.value and _MODE.value != "evaluate":
        raise ConfigError(f"--checkpoint goes with --mode=evaluate, not --mode={_MODE.value}")
    if _ENCRYPTED.value and _MODE.value != "predict":
        raise ConfigError(f"--encrypted goes with --mode=predict, not --mode={_MODE.value}")
    try:
        given = from_config_dict(ExperimentConfig, _CONFIG.value)
        config = resolved(given)
    except OSError as error:  # config_flags reports a file that it could not load only now
        raise ConfigError(
            f"--config: {_one_line(error).rpartition('config_config ')[2]}"
        ) from error
    for remark in remarks(given):
        print(f"warning: {remark}", flush=True)
    in_process = config.runtime.driver == "local"
    if in_process and not _RAY.value and environment.ray_address():
        raise ConfigError(
            f"RAY_ADDRESS={environment.ray_address()} in the environment needs "
            "config.runtime.driver = 'ray', not 'local'; unset RAY_ADDRESS or take that driver"
        )
    environment.set_up_process(config.runtime.threads if in_process else None)
    from primia_jax import commands  # brings JAX in, which must find its environment set

    ray_address = _RAY.value or environment.ray_address()
    run_arguments: dict[str, Any] = {
        "workdir": workdir,
        "resume": _RESUME.value,
        "ray_address": ray_address,
        "command": shlex.join(["python", "-m", "primia_jax.launch", *sys.argv[1:]]),
    }
    modes: dict[str, Callable[[], Any]] = {
        "train": lambda: commands.train(config, **run_arguments),
        "demo": lambda: commands.demo(config, **run_arguments),
        "benchmark": lambda: commands.benchmark(config, **run_arguments),
        "tune": lambda: commands.tune(config, **run_arguments),
        "audit": lambda: commands.audit(config, **run_arguments),
        "study": lambda: commands.study(config, **run_arguments),
        "evaluate": lambda: (
            commands.evaluate_federated(config, workdir, _CHECKPOINT.value, ray_address)
            if _CHECKPOINT.value
            else commands.evaluate(config, workdir)
        ),
        "predict": lambda: (
            commands.predict_encrypted(config, workdir, input_path, ray_address)
            if _ENCRYPTED.value
            else commands.predict(config, workdir, input_path)
        ),
    }
    modes[_MODE.value]()


def _export(workdir: str) -> None:
    """Exports the model of the run in `workdir`, whose own configuration says what it is."""
    if not workdir:
        raise ConfigError("--mode=export needs --workdir, the folder of a run")
    environment.set_up_process(None)
    from primia_jax import commands  # brings JAX in, which must find its environment set

    commands.export(workdir, "orbax" if _FORMAT.value == "orbax" else "safetensors")


def _show_status(workdir: str) -> None:
    """Prints the progress of the run in `workdir`, or a line for each run below this folder.

    Exit code 1 if the run in `workdir` failed, was interrupted or died.
    """
    from primia_jax.watch import status  # neither JAX nor the configuration is needed

    if not workdir:
        print("\n".join(status.listing(pathlib.Path.cwd())))
        return
    state = status.read(pathlib.Path(workdir).absolute())
    print("\n".join(state.lines()))
    table = state.table()
    if table is not None:
        wide = None if sys.stdout.isatty() else _PIPE_WIDTH
        rich.console.Console(width=wide).print(table)
    if not state.well:
        sys.exit(1)


def _parse(argv: list[str]) -> list[str]:
    """absl's parsing, with every mistake in the flags as one line, and `~` in paths expanded."""
    try:
        argv = [_HOME.sub(_expanded, argument) for argument in argv]
        files = [argument.partition("=")[2] for argument in argv if _FILE.match(argument)]
        for path in filter(None, (file.split(":")[0] for file in files)):
            _check_readable(path)
        changed = [argument.partition("=")[0] for argument in argv if _KEY.match(argument)]
        if changed and not files and not {"--config", "-config"}.intersection(argv):
            raise ConfigError(
                f"{printable(changed[0])} changes a configuration that is not named; give "
                f"--config=configs/NAME.py too{_listed(pathlib.Path('configs'))}"
            )
        return flags.FLAGS(argv)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"--config: no such file: {error.filename or error}") from error
    except (AttributeError, KeyError) as error:  # a key that the configuration does not have
        raise ConfigError(_unknown_key(argv, error)) from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise ConfigError(_with_flag(argv, _one_line(error))) from error


def _check_readable(path: str) -> None:
    """Refuses a file that is missing, and a named pipe or device, whose reading would not end."""
    if os.path.exists(path):
        check_regular(pathlib.Path(path), error=ConfigError)
    else:
        folder = pathlib.Path(path).parent
        folder = folder if any(folder.glob("*.py")) else pathlib.Path("configs")
        raise ConfigError(f"--config={printable(path)}: no such file{_listed(folder)}")


def _listed(folder: pathlib.Path) -> str:
    """The configurations in `folder`, to be put at the end of a message; empty without any."""
    names = sorted(path.as_posix() for path in folder.glob("*.py"))[:_LISTED]
    return f"; there are {printable(', '.join(names))}" if names else ""


def _with_flag(argv: Sequence[str], text: str) -> str:
    """`text`, which quotes a value, with the flag that has it before it."""
    for argument in argv:
        flag, _, value = argument.partition("=")
        if _KEY.match(argument) and value and repr(value) in text and flag not in text:
            return f"{printable(argument)}: {text}"
    return text


def _unknown_key(argv: Sequence[str], error: Exception) -> str:
    """A message that names the flag with the key that ml_collections does not find."""
    text = _one_line(error).replace("\\n", " ")
    missing, near = re.split(r"[Dd]id you mean", text + "did you mean")[:2]
    names = set(re.findall(r"\w+", missing))
    for argument in argv:
        flag = argument.partition("=")[0]
        if flag.startswith("--config.") and names.intersection(flag.split(".")[1:]):
            close = re.findall(r"\w+", near)
            hint = f"; did you mean {close[0]}?" if close else ""
            return f"{printable(flag)}: the configuration has no such key{hint}"
    return text


def _expanded(flag: re.Match[str]) -> str:
    """A flag whose value begins with `~`, which a shell expands only where a word begins."""
    return flag[1] + str(user_path(flag[2]))


def _one_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__


def run() -> None:
    """The entry point: runs `main`; a user's mistake becomes one line and an exit code."""
    environment.close_to_others()
    terminated = threading.Event()

    def terminate(*_: Any) -> None:
        """Ends the run as Ctrl-C does: its files are whole, and its actors are ended.

        Ray replaces what a handler raises by a KeyboardInterrupt of its own, hence the event.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        terminated.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        try:
            app.run(main, flags_parser=_parse)
        finally:
            sys.stdout.flush()  # a closed pipe shows here at the latest
    except UserError as error:
        text = "\n".join(map(printable, str(error).splitlines()))
        print(f"primia_jax: {text}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        if terminated.is_set():
            print("primia_jax: terminated; go on with --resume", file=sys.stderr)
            sys.exit(_TERMINATED)
        print("primia_jax: interrupted; go on with --resume", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # Nobody reads on. Python writes out its buffers once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_PIPE_CLOSED)


if __name__ == "__main__":
    run()
