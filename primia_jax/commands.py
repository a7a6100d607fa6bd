"""The modes of the command line: each calls a verb of the API and prints its result."""

import pathlib
import statistics
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from primia_jax import encrypted, experiment, exporting, judging, predictions, tasks
from primia_jax.campaigns import audit as auditing
from primia_jax.campaigns import latency, tuning
from primia_jax.campaigns import study as paper_study
from primia_jax.config import ExperimentConfig
from primia_jax.core import names, storage
from primia_jax.data import make_test_plan
from primia_jax.federated import privacy_statement
from primia_jax.predictions import Predictions
from primia_jax.reporting.console import format_bytes
from primia_jax.runtime import Trace
from primia_jax.tasks import TASKS
from primia_jax.tasks.task import Diagnoses

_SHOWN = 20  # predictions printed
_DEMO_IMAGES = 6


def train(config: ExperimentConfig, workdir: str, **arguments: Any) -> experiment.Result:
    """--mode=train."""
    result = experiment.train(config, workdir, **arguments)
    metrics = result.metrics
    for warning in result.warnings:
        print(f"warning: {warning}")
    print(f"kept the model of round {metrics['best_round']} of {metrics['rounds']}")
    if metrics["test"]:
        _print_scores(config, metrics["test"])
    if metrics.get("privacy"):
        print(privacy_statement.headline(metrics["privacy"]))
        for text in metrics["privacy"]["not_covered"]:
            print(f"  not covered: {text}")
    print(f"report: {result.workdir / 'report.html'}")
    return result


def evaluate_federated(
    config: ExperimentConfig, workdir: str, checkpoint: str, ray_address: str | None = None
) -> None:
    """--mode=evaluate --checkpoint=…: the hospitals judge it."""
    scores = judging.evaluate_federated(config, workdir, checkpoint, ray_address=ray_address)
    _print_judged(config, scores)
    if "personalised" in scores:
        print("each with its own batch norms:")
        _print_judged(config, scores["personalised"])
    print(f"written: {pathlib.Path(workdir) / judging.RESULT}")


def _print_judged(config: ExperimentConfig, evaluation: Mapping[str, Any]) -> None:
    """A line a hospital."""
    for name, scores in [*evaluation["sites"].items(), ("all hospitals", evaluation["all"])]:
        shown = (
            f"{title} {scores[key]:.3f}"
            for key, title in (*TASKS[config.task].headline, ("loss", "loss"))
            if scores.get(key) is not None
        )
        print(f"{name:14} {scores['n']:5} images   {'   '.join(shown)}")


def evaluate(config: ExperimentConfig, workdir: str) -> None:
    """--mode=evaluate."""
    scores = experiment.evaluate(config, workdir)
    for warning in scores.get("warnings", ()):
        print(f"warning: {warning}")
    _print_scores(config, scores)
    print(f"written: {pathlib.Path(workdir) / 'evaluation.json'}")


def predict(config: ExperimentConfig, workdir: str, input_path: str) -> Diagnoses:
    """--mode=predict."""
    table = experiment.predict(config, workdir, input_path, tell=print)
    _print_predictions(table)
    print(f"written: {pathlib.Path(workdir) / predictions.FILE}")
    return table


def export(workdir: str, kind: exporting.Format) -> None:
    """--mode=export."""
    print(f"written: {exporting.export(workdir, kind)}")


def predict_encrypted(
    config: ExperimentConfig, workdir: str, input_path: str, ray_address: str | None = None
) -> encrypted.EncryptedDiagnosis:
    """--mode=predict --encrypted."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns) as bar:
        task = bar.add_task("encrypted diagnosis", total=None)

        def progress(done: int, total: int, trace: Trace | None) -> None:
            bar.update(task, completed=done, total=total)

        diagnosis = encrypted.predict_encrypted(
            config, workdir, input_path, ray_address=ray_address, progress=progress
        )
    _print_cost(diagnosis)
    print(f"diagnosed {diagnosis.images} images; the data owner's results, skipped files among")
    print(f"them: {diagnosis.folder / predictions.FILE}")
    print(f"earlier results, if there were any: {diagnosis.folder / 'previous'}")
    print(f"messages and times: {pathlib.Path(workdir) / 'trace.json'}")
    return diagnosis


def _print_cost(diagnosis: encrypted.EncryptedDiagnosis) -> None:
    """Prints the cost of an image: the median, without the first one if others follow."""
    traces = diagnosis.traces[1:] or diagnosis.traces
    seconds = statistics.median(trace.seconds for trace in traces)
    compiling = "" if diagnosis.traces[1:] else " (compiling included)"
    sent = format_bytes(traces[0].bytes_sent)
    print(
        f"each image: {seconds:.2f} s{compiling}, {sent} between the three parties (its keys "
        f"included), {traces[0].round_trips:.1f} round trips"
    )


def _print_predictions(table: Diagnoses) -> None:
    """Prints a line a skipped file and a line an image, with what the table remarks on it."""
    for name, reason in table.skipped:
        print(f"skipped: {names.printable(name)}: {reason}")
    for line in table.lines()[:_SHOWN]:
        print(line)
    if len(table.names) > _SHOWN:
        print(f"and {len(table.names) - _SHOWN} more")


def demo(config: ExperimentConfig, workdir: str, **arguments: Any) -> None:
    """--mode=demo: trains, then diagnoses a few test films from files, as a user would.

    Raises:
      ConfigError: for another task than classification.
    """
    tasks.check_classifies(config, "--mode=demo")
    result = train(config, workdir, **arguments)
    plan = make_test_plan(config)
    test = plan.load_test(config.data.image_size)
    folder = result.workdir / "films"
    chosen = range(0, len(test), max(1, len(test) // _DEMO_IMAGES))[:_DEMO_IMAGES]
    for i in chosen:
        name = names.safe_file_name(f"{test.class_names[test.labels[i]]}_{i}.png")
        with storage.replacing(folder / name) as partial:
            Image.fromarray(test.images[i, :, :, 0]).save(partial, "PNG")
    print(f"\ndiagnosing {len(chosen)} test films (each file is named after its true class):")
    clear = predict(config, workdir, str(folder))
    assert isinstance(clear, Predictions)
    print("\nthe same films encrypted: their model does not see them, their owner not the model")
    diagnosis = predict_encrypted(config, workdir, str(folder), arguments.get("ray_address"))
    secret = predictions.read_predictions(diagnosis.folder)  # the demo plays the data owner too
    _print_predictions(secret)
    same = sum(a == b for a, b in zip(clear.classes(), secret.classes()))
    largest = abs(clear.probabilities - secret.probabilities).max()
    print(
        f"encrypted and in the clear: {same} of {len(chosen)} classes the same, probabilities "
        f"within {largest:.4f}"
    )


def benchmark(config: ExperimentConfig, workdir: str, **arguments: Any) -> None:
    """--mode=benchmark: the latency study."""
    latency.check(config.latency_study)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns) as bar:
        bars: dict[str, Any] = {}

        def progress(network: str, done: int, total: int) -> None:
            if network not in bars:
                bars[network] = bar.add_task(network, total=total)
            bar.update(bars[network], completed=done)

        study = latency.run(config, workdir, progress=progress, **arguments)
    for session in study.sessions:
        for warning in session.warnings:
            print(f"warning: {session.network}, {session.protocol}: {warning}")
    for cell in study.cells:
        if cell.bandwidth_mbps == study.reference_mbps:
            reduction = study.compared(cell).reduction_percent
            against = "" if reduction is None else f"   {-reduction:+.0f} % against securenn"
            print(
                f"{cell.network:13} {cell.protocol:9} {cell.latency_ms:4g} ms: {cell.mean:8.3f} ± "
                f"{cell.deviation:.3f} s{against}"
            )
    print(f"report: {pathlib.Path(workdir) / 'report.html'}")


def audit(config: ExperimentConfig, workdir: str, **arguments: Any) -> None:
    """--mode=audit."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns) as bar:
        bars: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = bar.add_task(what, total=total)
            bar.update(bars[what], completed=done, total=total)

        audited = auditing.audit(config, workdir, progress=progress, **arguments)
    for row in audited["settings"]:
        psnr, share = row["psnr"], row["identified"]["share"]
        chance = row["identified"]["chance"]
        worth = f", MCC {row['utility']['mcc']:.2f}" if row["utility"] else ""
        print(
            f"{row['setting']}: PSNR {psnr['mean']:.1f} dB over {row['n']} images (worst "
            f"{psnr['worst']:.1f}), {share:.0%} identified (chance {chance:.0%}){worth}"
        )
    for text in audited["verdicts"]:
        print(text)
    print(f"report: {audited['report']}")


def tune(config: ExperimentConfig, workdir: str, **arguments: Any) -> None:
    """--mode=tune: a line a trial; on a terminal bars show the rounds of those that run."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn()) as bar:
        bars: dict[int, Any] = {}

        def progress(event: tuning.Event) -> None:
            if event.what == "end":
                if event.number in bars:
                    bar.remove_task(bars.pop(event.number))
                score = "" if event.mcc is None else f", validation MCC {event.mcc:.3f}"
                ended = sum(event.counts.values()) - event.counts["running"]
                bar.console.print(
                    f"trial {event.number}: {event.text}{score} ({ended} of "
                    f"{config.tuning.trials})",
                    highlight=False, markup=False, soft_wrap=True,
                )  # fmt: skip
                return
            title = f"trial {event.number}"
            if event.number not in bars:
                bars[event.number] = bar.add_task(title, total=config.federated.rounds)
            if event.mcc is not None:
                title += f", validation MCC {event.mcc:.3f}"
            bar.update(bars[event.number], completed=event.round, description=title)

        search = tuning.tune(config, workdir, progress=progress, **arguments)
    if search.spent:
        print(f"warning: the search ended early: {search.spent}")
    print(f"best: trial {search.best}, federated validation MCC {search.mcc:.3f}, with")
    for name, value in search.settings.items():
        print(f"  {name} = {value!r}")
    print(f"train with it: --config={search.workdir / 'best_config.py'} --mode=train")
    print(f"report: {search.workdir / 'report.html'}")


def study(config: ExperimentConfig, workdir: str, **arguments: Any) -> None:
    """--mode=study: the paper's tables."""
    started = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        print(f"[{time.monotonic() - started:5.0f} s, {done} of {total} done] {what}", flush=True)

    results = paper_study.run(config, workdir, progress=progress, **arguments)
    print()
    print(paper_study.as_text(results.tables))
    print(f"report: {results.workdir / 'report.html'}")


def _print_scores(config: ExperimentConfig, scores: Mapping[str, Any]) -> None:
    print(f"test set of {scores['n']} images:")
    for key, title in TASKS[config.task].headline:
        if scores.get(key) is None:
            continue
        low, high = scores["intervals"][key]
        print(f"  {title:9} {scores[key]:.3f}   (95 % interval {low:.3f} to {high:.3f})")
