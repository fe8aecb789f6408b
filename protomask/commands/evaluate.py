"""``protomask evaluate``: methods by metrics on the same pairs, with intervals, pictures and a report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from protomask.commands.common import (
    MODEL_HELP,
    add_evaluation_data_options,
    add_run_options,
    add_trust,
    choose_device,
    count_option,
    dataset_for,
    load_methods,
    names_option,
    positive,
    seconds_of,
    settle_batch,
    size_option,
    spell_duration,
)
from protomask.commands.longrun import add_long_run_options, batch_of, engine_of, run_job, terms_of, threads_of
from protomask.commands.publish import Kept, publish
from protomask.data import Dataset, file_of, own_options
from protomask.errors import InputError, expected
from protomask.evaluation import METHODS, Evaluation
from protomask.jobs.drawing import contents, drawn_pairs
from protomask.jobs.evaluating import RANDOMISATION, EvaluateJob, EvaluateTask, gather, plan_evaluate
from protomask.jobs.folder import Folder
from protomask.jobs.needs import check_needs
from protomask.jobs.studies import MOST_PROTOTYPES, check_studies, gather_studies, plan_studies, runs_again
from protomask.jobs.work import MOST_SAID, Engine, Terms
from protomask.loading import Loaded, load_model
from protomask.localisers import image_passes_of
from protomask.locating import resolve_method
from protomask.metrics import metrics_by_scope, scoring_passes
from protomask.model import device_of
from protomask.pickles import printable
from protomask.sanity import AGREEMENT_IMAGES
from protomask.store import Plan, prepare_output
from protomask.visualise.report import Picture


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``evaluate`` and its options."""
    parser = commands.add_parser(
        "evaluate",
        help="score localisation methods on a data set",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Score localisation methods on the same (image, prototype) pairs.\n\n"
        "Writes into --out: pairs.csv and pairs.parquet (a row per pair, method and metric), scores.json, scores.tex,\n"
        "run.json, regions.json, examples/, panels/ and a self-contained report.html, which `protomask report` makes\n"
        "again from the rest. Intervals are 95 % bootstrap intervals, clustered by image.\n\n"
        "Metrics of prototypes (consistency, stability, purity: data with annotated parts) write prototypes.csv too;\n"
        "randomisation runs each method once more on every pair; agreement needs --agree, and writes agreement.csv.\n\n"
        "Metrics that are added to --metrics later on, in the same folder, are scored from the maps that lie there.",
        epilog="examples:\n"
        "  protomask evaluate demo:protopnet --data planted --scenes 400 --out scores\n"
        "  protomask evaluate runs/cub --data cub --root CUB_200_2011 --methods mdm,upsampling,random --out scores\n"
        "  protomask evaluate runs/a --agree runs/b --data cub --root CUB_200_2011 \\\n"
        "      --metrics energy,deletion,consistency,purity,randomisation,agreement --out scores",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_trust(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="where results go")
    parser.add_argument(
        "--methods",
        type=names_option,
        metavar="A,B,C",
        help=f"see `protomask methods` (default: {','.join(METHODS)})",
    )
    parser.add_argument(
        "--metrics",
        type=names_option,
        metavar="A,B,C",
        help="see `protomask metrics` (default: all against the annotation, and those against the model that fill with "
        "the mean colour)",
    )
    parser.add_argument(
        "--pairs", type=positive, default=200, metavar="N", help="pairs to score (default: %(default)s)"
    )
    parser.add_argument(
        "--prototypes",
        type=positive,
        default=MOST_PROTOTYPES,
        metavar="N",
        help="prototypes to score at most, drawn from the seed, on 10 images each, where --metrics names consistency, "
        "stability or purity (default: %(default)s)",
    )
    parser.add_argument(
        "--agree",
        action="append",
        default=[],
        metavar="MODEL",
        help="another training of the same classes: compare its maps with those of MODEL (agreement); may be repeated",
    )
    parser.add_argument(
        "--agree-images",
        type=positive,
        default=AGREEMENT_IMAGES,
        metavar="N",
        help="images on which they are compared, drawn from the seed (default: %(default)s)",
    )
    parser.add_argument(
        "--clear-parts",
        action="store_true",
        help="score only pairs with a clear causal part (always so where parts have masks)",
    )
    parser.add_argument(
        "--panels", type=count_option, default=12, metavar="N", help="pairs to draw (default: %(default)s)"
    )
    parser.add_argument("--size", type=size_option, metavar="HxW", help="input size, for a model that does not tell it")
    add_evaluation_data_options(parser)
    parser.add_argument(
        "--maps",
        action="append",
        default=[],
        metavar="DIR",
        help="score maps that another program made, too, under the folder's name; may be repeated",
    )
    add_run_options(parser)
    add_long_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table, write the files."""
    out = prepare_output(args.out)
    methods = default_methods(args.data) if args.methods is None else args.methods
    methods += load_methods(args)
    check_methods(methods)
    check_names(args.metrics)
    terms = terms_of(args)
    threads = threads_of(args.threads, out)
    loaded, dataset = open_data(args)
    others = open_others(args)
    check_studies(args.metrics, loaded, dataset, others, args.agree_images)
    args.batch = batch_of(args.batch, args.memory, device_of(loaded.model).type, out)
    settle_batch(args, loaded)
    options: dict[str, Any] = {
        "pairs": args.pairs,
        "seed": args.seed,
        "batch": args.batch,
        "clear_parts": args.clear_parts,
    }
    options |= {"data": _spelled(args), "metrics": args.metrics, "prototypes": args.prototypes, "others": others}
    options["agree_images"] = args.agree_images
    job = evaluation_job(out, loaded, dataset, methods, threads=threads, terms=terms, **options)
    engine = engine_of(args, job.plan, partial(reopen_job, args, job.plan, job.task))
    finish_evaluation(out, job, terms, engine, panels=args.panels, assemble=args.assemble)


def open_data(args: argparse.Namespace) -> tuple[Loaded, Dataset]:
    """The model and the data set that the options name."""
    loaded = load_model(args.model, choose_device(args.device), args.size, trust=args.trust)
    return loaded, dataset_for(args, loaded)


def open_others(args: argparse.Namespace) -> tuple[Loaded, ...]:
    """The models that ``--agree`` names."""
    return tuple(load_model(name, choose_device(args.device), args.size, trust=args.trust) for name in args.agree)


def reopen_job(args: argparse.Namespace, plan: Plan, task: EvaluateTask) -> EvaluateJob:
    """The same job in another process."""
    load_methods(args)
    return EvaluateJob(plan, *open_data(args), task, open_others(args), Path(args.out).resolve())


def default_methods(data: str) -> tuple[str, ...]:
    """All methods of this kind of data: a folder has no annotation to show."""
    return tuple(m for m in METHODS if data != "folder" or m != "annotation")


def check_names(metrics: Sequence[str] | None) -> None:
    """InputError unless these are metrics, one of them at least of pairs, whose table the files and the report need."""
    scopes = metrics_by_scope(metrics)
    if not scopes["pair"]:
        came = ", ".join(metrics or ())
        raise InputError(expected("--metrics", "one metric per pair at least, such as energy, beside the others", came))


def check_methods(methods: Sequence[str]) -> None:
    """InputError unless these are registered methods, each once."""
    if len(set(methods)) != len(methods):
        raise InputError(expected("--methods", "each method once", ",".join(methods)))
    for method in methods:
        resolve_method(method)


def evaluate_into(
    out: Path,
    loaded: Loaded,
    dataset: Dataset,
    methods: Sequence[str],
    *,
    pairs: int,
    panels: int,
    seed: int,
    batch: int,
    progress: bool,
    clear_parts: bool = False,
    extra: Sequence[Picture] = (),
) -> tuple[Evaluation, Kept]:
    """Evaluate ``methods`` and write everything into ``out``; also what ``protomask demo`` runs.

    What ``out`` holds of an earlier run of the same model, data and settings is not computed again.

    Args:
        out: an existing folder.
        loaded: the model.
        dataset: its samples, with the model's class indices.
        methods: names of localisers.
        pairs: to score.
        panels: pairs to draw.
        seed: of everything drawn.
        batch: images in one network pass.
        progress: show progress bars.
        clear_parts: score only pairs with a clear causal part.
        extra: pictures to put into the report before the panels.
    """
    terms = Terms(progress=progress)
    options: dict[str, Any] = {"pairs": pairs, "seed": seed, "batch": batch, "clear_parts": clear_parts}
    job = evaluation_job(out, loaded, dataset, methods, threads=threads_of(None, out), terms=terms, **options)
    made = finish_evaluation(out, job, terms, None, panels=panels, extra=extra)
    if made is None:
        raise RuntimeError("an evaluation that is no share of one is always finished")
    return made


def evaluation_job(
    out: Path,
    loaded: Loaded,
    dataset: Dataset,
    methods: Sequence[str],
    *,
    pairs: int,
    seed: int,
    batch: int,
    clear_parts: bool,
    threads: int,
    terms: Terms,
    data: Mapping[str, Any] | None = None,
    metrics: tuple[str, ...] | None = None,
    prototypes: int = MOST_PROTOTYPES,
    others: tuple[Loaded, ...] = (),
    agree_images: int = AGREEMENT_IMAGES,
) -> EvaluateJob:
    """The job of scoring ``methods``, its pairs drawn now, or before, and kept in ``out``."""
    drawn = drawn_pairs(
        out,
        loaded,
        dataset,
        data or {},
        pairs=pairs,
        seed=seed,
        batch=batch,
        clear=clear_parts,
        thread_count=threads,
        strict=terms.strict,
        progress=terms.progress,
    )
    for reason in drawn.skipped:
        tqdm.write(f"skipped: {printable(reason, MOST_SAID)}")
    if metrics is not None:  # of those that nobody named each is shown where it is defined
        for line in check_needs(metrics_by_scope(metrics)["pair"], loaded.model, dataset, drawn.pairs):
            tqdm.write(line)
    own: dict[str, Any] = {"prototypes": prototypes, "agree_images": agree_images}
    task = EvaluateTask(tuple(methods), seed, batch, metrics=metrics, threads=threads, **own)
    beside = plan_studies(loaded, dataset, contents(dataset, data or {}), task.asked(others), seed)
    plan = plan_evaluate(loaded, dataset, drawn, task, beside)
    return EvaluateJob(plan, loaded, dataset, task, others, out.resolve())


def finish_evaluation(
    out: Path,
    job: EvaluateJob,
    terms: Terms,
    engine: Engine | None,
    *,
    panels: int,
    extra: Sequence[Picture] = (),
    assemble: bool = False,
) -> tuple[Evaluation, Kept] | None:
    """Compute what is missing and publish it; None where this process does one of several shares."""
    made: list[tuple[Evaluation, Kept]] = []

    def finish(folder: Folder) -> None:
        kept = Kept(panels, out, partial(file_of, job.dataset))
        result = gather(folder.run, job.dataset, kept.see)
        studied = gather_studies(folder.run)
        publish(out, job.loaded, job.dataset, result, kept, studied, seed=job.task.seed, extra=extra)
        made.append((result, kept))

    run_job(
        job,
        out,
        terms,
        engine,
        assemble=assemble,
        say=lambda left: _say_cost(job, left),
        finish=finish,
    )
    return made[0] if made else None


def _spelled(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say of the data."""
    names = ("data", "root", "split", "crop", "data_seed", "count", "species")
    return {**{name: getattr(args, name) for name in names}, "own": own_options(vars(args))}


def _say_cost(job: EvaluateJob, left: float) -> None:
    methods, pairs = job.task.methods, len(job.plan.items)
    localisers = {name: resolve_method(name)[0] for name in methods}
    again = [name for name in methods if runs_again(name)]
    there, scored = job.known()
    shuffled = job.task.randomises and RANDOMISATION not in scored
    rounds = {name: 1 - there + (shuffled and name in again) for name in methods}
    backward = sum(rounds[name] * made.passes for name, made in localisers.items())
    forward, more = (len(methods) * passes for passes in scoring_passes(set(job.task.per_pair) - scored))
    forward += sum(rounds[name] * image_passes_of(made) for name, made in localisers.items())
    beside = sum(shard.maps for shard in job.plan.shards if shard.study) / max(1, len(again))  # maps per method
    studied = left * beside * sum(localisers[name].passes for name in again)
    seen = left * beside * sum(1 + image_passes_of(localisers[name]) for name in again)
    passes = (left * pairs * (backward + more) + studied, left * pairs * forward + seen)
    seconds = seconds_of(job.loaded, job.task.batch, *passes)
    already = "" if left == 1 else f"; {1 - left:.0%} is stored"
    print(
        f"{pairs} pairs, {len(methods)} methods: {backward + more:.0f} forward + gradient and {forward:.0f} forward "
        f"passes per pair{_spell_more(job, beside, shuffled)}, about {spell_duration(seconds)}{already}"
        + (f"; {there:.0%} of the maps to score are there." if there else ".")
    )


def _spell_more(job: EvaluateJob, beside: float, shuffled: bool) -> str:
    """What is located beside each pair's own maps."""
    told = ["randomisation locates each pair once more"] if shuffled else []
    if beside:
        studies = [*job.task.asked().metrics, *(["agreement"] if job.others else [])]
        told.append(f"{', '.join(studies)}: {beside:.0f} more maps per method")
    return f" ({'; '.join(told)})" if told else ""
