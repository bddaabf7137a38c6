"""The steps of scoring alone, each from saved files to saved files.

    cohort       embeddings, manifest → cohort.npz
    qmf          embeddings, manifest (cohort) → calibration.json
    score        embeddings, trial lists (cohort, calibration.json) → score files
    calibrate    score files, a trial list → calibration.json
    fuse         calibration.json, score files → one score file
    evaluate     a trial list, score files → report and pictures
    fuse_verified   folders of verify.py → all models fused on every list, and a report

Score files are text or tables, by their suffix. No command imports torch; each imports
what it runs when it runs.
"""

from dataclasses import replace
from pathlib import Path

from speechbrain_ext.utils.errors import InputError, naming

LIST = "the trial list"  # among systems; no name of theirs has white space


def cohort(arguments):
    """Mean embedding of every speaker, and their mean."""
    from speechbrain_ext.scoring.cohort import save_cohort, speaker_means

    manifest, vectors = _embeddings_of(arguments)
    with naming(arguments.embeddings):
        means = speaker_means(vectors, manifest.speakers)
    save_cohort(arguments.output, means)
    print(f"{arguments.output}: {len(means.speakers)} speakers")


def qmf(arguments):
    """Fit the quality-aware calibration of a back-end."""
    from speechbrain_ext.scoring.backend import TrialSide, fit_calibrator
    from speechbrain_ext.scoring.calibration.trials import draw_calibration_trials

    backend = _backend(arguments)
    manifest, vectors = _embeddings_of(arguments)
    backend.check_width(vectors.shape[1], arguments.embeddings)
    keys = ("n_trials", "boundary", "shortest", "seed")
    drawing = {key: getattr(arguments, key) for key in keys}
    with naming(arguments.manifest):
        speakers, seconds = manifest.speakers, manifest.durations
        trials = draw_calibration_trials(speakers, seconds, **drawing)
        side = TrialSide(vectors, seconds)
        options = arguments.objective, arguments.l2
        backend = fit_calibrator(backend, side, speakers, trials, *options)
    _save_calibrator(arguments.output, backend.calibrator)


def score(arguments):
    """Score trial lists by every step that files are given for."""
    from speechbrain_ext.evaluation.score_lists import (
        Recordings,
        averaged,
        read_lists,
        recordings_of,
        score_list,
    )
    from speechbrain_ext.scoring.backend import TrialSide, input_names
    from speechbrain_ext.scoring.calibration import QualityCalibrator
    from speechbrain_ext.scoring.embeddings import load_embeddings
    from speechbrain_ext.scoring.enrolment import read_enrol_map

    lists = read_lists(arguments.trials)
    backend = _backend(arguments)
    if arguments.calibrator:
        names = input_names(
            bool(arguments.manifest), bool(arguments.cohort), backend.top_n
        )
        calibrator = QualityCalibrator.load(arguments.calibrator, names)
        backend = replace(backend, calibrator=calibrator)
    if arguments.manifest:
        test = recordings_of(*_embeddings_of(arguments), arguments.embeddings)
    else:
        ids, vectors = load_embeddings(arguments.embeddings)
        test = Recordings(ids, TrialSide(vectors), {}, arguments.embeddings)
    backend.check_width(test.side.vectors.shape[1], arguments.embeddings)
    enrol = test
    if arguments.enrol_map:
        enrol = averaged(read_enrol_map(arguments.enrol_map), test)
    folder = Path(arguments.output)
    for name, trials in lists.items():
        for system in score_list(name, trials, backend, enrol, test, folder):
            print(folder / f"scores_{name}_{system.name}.txt")


def calibrate(arguments):
    """Fit an affine map of one system's scores, or a fusion of several."""
    calibrator = _fitted(_named_files(arguments.scores), arguments, arguments.trials)
    _save_calibrator(arguments.output, calibrator)


def fuse(arguments):
    """Scores of systems → natural-log likelihood ratios."""
    from speechbrain_ext.scoring.calibration import QualityCalibrator
    from speechbrain_ext.scoring.embeddings import SUFFIXES
    from speechbrain_ext.scoring.score_files import write_score_table, write_scores

    output = Path(arguments.output)
    if output.suffix.lower() not in (".txt", *SUFFIXES):
        raise InputError(
            f"{output}: suffix '{output.suffix}', expected .txt or one of "
            f"{', '.join(SUFFIXES)}"
        )
    calibrator = QualityCalibrator.load(arguments.calibrator)
    systems = _named_files(arguments.scores)
    if set(systems) != set(calibrator.names):
        raise InputError(
            f"{arguments.calibrator}: calibrates {', '.join(calibrator.names)}, "
            f"expected the systems of --scores: {', '.join(systems)}"
        )
    trials, values = _stacked(
        {name: systems[name] for name in calibrator.names}, arguments.trials
    )
    ratios = calibrator.log_likelihood_ratio(values)
    write = write_scores if output.suffix.lower() == ".txt" else write_score_table
    write(output, trials, ratios)
    print(f"{output}: {len(ratios):,} trials")


def fuse_verified(arguments):
    """Fuse models as their held-out speakers say, on every list of verify.py."""
    from speechbrain_ext.evaluation.score_lists import report_list
    from speechbrain_ext.scoring.report import System, write_report
    from speechbrain_ext.scoring.score_files import write_score_table

    _check_resamples(arguments)
    folders = _named_files(arguments.verified, "--verified")
    kind, output = f"_{arguments.system}.npz", Path(arguments.output)
    lists = {
        name: {path.name for path in Path(folder).glob(f"scores_*{kind}")}
        for name, folder in folders.items()
    }
    every = set().union(*lists.values())
    for name, found in lists.items():
        missing = sorted(every - found) if every else [f"scores_LIST{kind}"]
        if missing:
            raise InputError(
                f"{folders[name]}: no {missing[0]}, expected the lists that verify.py "
                "wrote for the other models"
            )

    def tables(stem):
        return {name: f"{folder}/{stem}{kind}" for name, folder in folders.items()}

    calibrator = _fitted(tables("calibration_scores"), arguments)
    stems = [table.removesuffix(kind) for table in sorted(every)]
    scored = [(stem.removeprefix("scores_"), *_stacked(tables(stem))) for stem in stems]
    for _, trials, _ in scored:
        _check_labels(trials)
    results = []
    for name, trials, values in scored:
        ratios = calibrator.log_likelihood_ratio(values)
        write_score_table(output / f"scores_{name}_fused.npz", trials, ratios)
        systems = [
            System(model, model, column, calibrated=arguments.system == "llr")
            for model, column in zip(folders, values.T, strict=True)
        ]
        systems.append(System("fused", "fused", ratios, calibrated=True))
        trials = replace(trials, path=Path(name))
        results.append(
            report_list(name, trials, systems, output, arguments.n_resamples)
        )
    _save_calibrator(output / "calibration.json", calibrator)
    about = {f"verified {name}": str(folder) for name, folder in folders.items()}
    print(write_report(output, results, about))


def evaluate(arguments):
    """Figures and pictures of the scores of systems on one list."""
    from speechbrain_ext.data.manifest import read_manifest
    from speechbrain_ext.evaluation.score_lists import report_list
    from speechbrain_ext.scoring.report import System, write_report

    files = _named_files(arguments.scores)
    unknown = sorted(set(arguments.calibrated) - set(files))
    if unknown:
        raise InputError(
            f"--calibrated {unknown[0]}, expected systems of --scores: "
            f"{', '.join(files)}"
        )
    _check_resamples(arguments)
    speakers = None
    if arguments.manifest:
        manifest = read_manifest(arguments.manifest)
        speakers = dict(zip(manifest.ids.tolist(), manifest.speakers.tolist()))
    trials, values = _stacked(files, arguments.trials)
    systems = [
        System(name, name, column, calibrated=name in arguments.calibrated)
        for name, column in zip(files, values.T, strict=True)
    ]
    folder = Path(arguments.output)
    result = report_list(
        *(trials.path.stem, trials, systems, folder, arguments.n_resamples, speakers)
    )
    print(write_report(folder, [result], {f"scores {n}": f for n, f in files.items()}))
    print(f"report {folder / 'results.md'}")


def _embeddings_of(arguments):
    """(manifest of the recordings, float32 [N, E]), in the order of the embeddings."""
    import numpy as np

    from speechbrain_ext.data.manifest import read_manifest
    from speechbrain_ext.scoring.embeddings import load_embeddings
    from speechbrain_ext.scoring.trials import rows_among

    manifest = read_manifest(arguments.manifest)
    ids, vectors = load_embeddings(arguments.embeddings)
    rows = rows_among(manifest.ids, ids)
    if (rows < 0).any():
        raise InputError(
            f"{arguments.manifest}: no recording '{ids[np.argmin(rows)]}', expected "
            f"all {len(rows)} of {arguments.embeddings} ({(rows < 0).sum()} absent)"
        )
    return manifest.select(rows), vectors


def _backend(arguments):
    from speechbrain_ext.scoring.backend import Backend
    from speechbrain_ext.scoring.cohort import load_cohort

    top_n = None
    if arguments.top_n != "all":
        try:
            top_n = int(arguments.top_n)
        except ValueError:
            raise InputError(
                f"--top_n {arguments.top_n}, expected a whole number, or all"
            ) from None
    cohort = load_cohort(arguments.cohort) if arguments.cohort else None
    with naming(arguments.cohort or "back-end"):
        return Backend(cohort, top_n=top_n, memory_mib=arguments.memory_mib)


def _save_calibrator(path, calibrator):
    calibrator.save(path)
    print(f"{path}: {calibrator.n_target} target, {calibrator.n_nontarget} non-target")
    for name, weight in zip(calibrator.names, calibrator.weights, strict=True):
        print(f"{name:<24}{weight:>14.6g}")
    print(f"{'bias':<24}{calibrator.bias:>14.6g}")


def _fitted(files, arguments, path=None):
    """A calibrator of the systems in these files, with labels as of ``_stacked``."""
    from speechbrain_ext.scoring.calibration import QualityCalibrator

    calibrator = QualityCalibrator(list(files), arguments.objective, l2=arguments.l2)
    trials, values = _stacked(files, path)
    _check_labels(trials)
    return calibrator.fit(values, trials.labels)


def _check_resamples(arguments):
    if arguments.n_resamples == 1 or arguments.n_resamples < 0:
        raise InputError(
            f"--n_resamples {arguments.n_resamples}, expected 0 or at least 2"
        )


def _check_labels(trials):
    if trials.labels is None:
        raise InputError(
            f"{trials.path}: scores without labels, expected those of labelled trials"
        )


def _named_files(words, option="--scores"):
    """NAME=FILE words of an option → {name: file}."""
    files = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not path or not name or set(name) & set("/\\ \t\n"):
            raise InputError(
                f"{option} {word!r}, expected NAME=FILE, no slash or space in NAME"
            )
        if name in files:
            raise InputError(f"{option}: two systems named '{name}', expected one")
        files[name] = path
    return files


def _read_any_scores(path):
    """(Trials, scores [T]) of a table or a text, by the suffix."""
    from speechbrain_ext.scoring.embeddings import SUFFIXES
    from speechbrain_ext.scoring.score_files import read_score_table, read_scores

    read = read_score_table if Path(path).suffix.lower() in SUFFIXES else read_scores
    return read(path)


def _stacked(files, path=None):
    """Scores side by side, in the order of a list's file, None: of the first system.

    → Trials, float64 [T, S].
    """
    from speechbrain_ext.evaluation.score_lists import read_lists
    from speechbrain_ext.scoring.calibration.fusion import stack_scores

    systems = {name: _read_any_scores(path) for name, path in files.items()}
    if path is None:
        trials = next(iter(systems.values()))[0]
        return trials, stack_scores(systems).values
    (trials,) = read_lists([path]).values()
    systems = {LIST: (trials, trials.labels), **systems}
    return trials, stack_scores(systems).values[:, 1:]


def add_scoring(commands):
    """Add the commands of this file."""
    parser = _command(commands, cohort, "the speakers of some embeddings as a cohort")
    _add_embeddings(parser)
    _add_output(parser, "cohort.npz, for AS-norm")

    summary = "fit a quality-aware calibration to embeddings of speakers"
    parser = _command(commands, qmf, summary)
    _add_embeddings(parser)
    _add_backend(parser)
    _add_fitting(parser)
    add = parser.add_argument
    add("--n_trials", type=int, default=30_000, help="to draw")
    add("--boundary", type=float, default=6.0, help="seconds: longer ones are long")
    add("--shortest", type=float, default=2.0, help="seconds: shorter are left out")
    add("--seed", type=int, default=0, help="of the trials")
    _add_output(parser, "calibration.json, for score --calibrator")

    parser = _command(commands, score, "scores of trial lists from embeddings")
    add = parser.add_argument
    add("--embeddings", required=True, help="npz or safetensors")
    add("--trials", required=True, nargs="+", help="one list or more")
    add("--enrol_map", help="lines 'model utterance …'; averaged")
    add("--manifest", help="CSV of these recordings: durations, which QMF wants")
    _add_backend(parser)
    add("--calibrator", help="calibration.json of qmf or verify.py")
    _add_output(parser, "folder for scores_LIST_SYSTEM.txt and .npz")

    summary = "fit likelihood ratios to the scores of systems"
    parser = _command(commands, calibrate, summary)
    _add_lists(parser, required=False)
    _add_fitting(parser, l2=1e-6)
    _add_output(parser, "calibration.json, for fuse")

    summary = "apply the calibration of one system or of several"
    parser = _command(commands, fuse, summary)
    parser.add_argument("--calibrator", required=True, help="of calibrate")
    _add_lists(parser, required=False)
    _add_output(parser, "file: text (.txt) or a table (.npz, .safetensors)")

    parser = _command(commands, evaluate, "report of the scores of systems on a list")
    _add_lists(parser)
    add = parser.add_argument
    add(
        "--calibrated",
        nargs="+",
        default=[],
        metavar="NAME",
        help="systems whose scores are natural-log likelihood ratios",
    )
    add("--manifest", help="CSV: speakers of recordings whose names do not tell them")
    _add_resamples(parser)
    _add_output(parser, "folder for results.json, results.md and pictures")

    summary = "fuse models on the lists that verify.py went through with each"
    parser = _command(commands, fuse_verified, summary)
    parser.add_argument(
        "--verified",
        required=True,
        nargs="+",
        metavar="NAME=FOLDER",
        help="models: output folders of verify.py, each with a calibration",
    )
    parser.add_argument("--system", default="as_norm", help="or cosine, or llr")
    _add_fitting(parser, l2=1e-6)
    _add_resamples(parser)
    _add_output(parser, "folder for scores, calibration.json, results and pictures")


def _command(commands, run, summary):
    parser = commands.add_parser(run.__name__, help=summary, description=summary)
    parser.set_defaults(run=run)
    return parser


def _add_embeddings(parser):
    parser.add_argument("--embeddings", required=True, help="npz or safetensors")
    parser.add_argument("--manifest", required=True, help="CSV: whose they are")


def _add_backend(parser):
    parser.add_argument("--cohort", help="cohort.npz of cohort or verify.py: AS-norm")
    parser.add_argument(
        "--top_n", default="300", help="of the cohort; all: S-norm (default: 300)"
    )
    parser.add_argument("--memory_mib", type=float, default=512, help="of AS-norm")


def _add_fitting(parser, l2=None):
    parser.add_argument("--objective", default="cllr", help="cllr or cross_entropy")
    chosen = "by cross-validation" if l2 is None else f"{l2:g}"
    parser.add_argument(
        "--l2", type=float, default=l2, help=f"of the weights (default: {chosen})"
    )


def _add_lists(parser, required=True):
    order = "" if required else "; its order and labels, else those of the first system"
    parser.add_argument("--trials", required=required, help=f"trial list{order}")
    parser.add_argument(
        "--scores",
        required=True,
        nargs="+",
        metavar="NAME=FILE",
        help="systems: text 'enrol test score', or a table",
    )


def _add_resamples(parser):
    parser.add_argument(
        "--n_resamples", type=int, default=200, help="of the bootstrap; 0: none"
    )


def _add_output(parser, what):
    parser.add_argument("--output", required=True, help=what)
