"""`evaluate`: a model scored on benchmark tasks, and on probes of what they do not show."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.commands.arguments import Parser, add_config_arguments
from uniattn_pl.config.paths import text_argument
from uniattn_pl.errors import UserError
from uniattn_pl.run_folder import check_run_folder

if TYPE_CHECKING:
    from uniattn_pl.config.sections.measuring_sections import EvaluationConfig

PROBES_OF_SERVERS = ("held_out",)
DESCRIPTION = """\
Scores a model on tasks of lm-evaluation-harness (evaluation.tasks, with the harness's own prompts and metrics) and on
probes (evaluation.probes): loss and perplexity on the held-out rows of the config's data, loss by position on a long
text, retrieval of needles.
The model is that of --from; without it the finished fit in the config's run folder or, where nothing was fitted, the
config's model as it is. Without --config a run is evaluated with its own, on its own rows. What a killed evaluation
has finished is kept. Results of a run go into its folder's evaluation/ and its MLflow run; of anything else into the
config's run folder and an MLflow run of its own."""
SHOWS_TABLES = True
EXAMPLE = """\
  uniattn-pl evaluate --config experiments/smollm2/eval_pubmedqa.yaml
  uniattn-pl evaluate --config experiments/smollm2/eval_pubmedqa.yaml --from runs/my-uniattn evaluation.limit=100
  uniattn-pl evaluate --from smollm2-135m evaluation.tasks=[commonsense_qa] --h2o 0.5
  uniattn-pl evaluate --from runs/quickstart/UniAttn --server http://127.0.0.1:8000 evaluation.probes=[held_out]"""
EXTRA = "training"


def add_arguments(parser: Parser) -> None:
    """Add the options of `evaluate`."""
    parser.add_argument(
        "--from",
        dest="source",
        type=text_argument,
        metavar="MODEL",
        help="a run folder (runs/NAME), a model folder, a name from `list models` or a hub id; default: see above",
    )
    add_config_arguments(parser, dry_run=True)
    parser.add_argument(
        "--h2o",
        type=float,
        metavar="RATE",
        help="measure only with this fraction of each prompt's cache, the most attended and most recent tokens",
    )
    parser.add_argument(
        "--beside",
        choices=("original",),
        help="measure the model that a run was made from on the same, too: a column of the table",
    )
    parser.add_argument(
        "--server",
        type=text_argument,
        metavar="URL",
        help="measure what an OpenAI-compatible server says that serves this model (`serve`, vLLM), beside what the "
        "model itself was measured to say; tasks, and the probe held_out",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the request, then evaluate."""
    from uniattn_pl.commands.run_config import check_rows, load_of_run

    loaded = load_of_run(arguments, None if arguments.source is None else Path(arguments.source))
    if arguments.print_config:
        print(loaded.to_yaml(), end="")
        return 0
    options, problems = loaded.config.evaluation, []
    if not options.tasks and not options.probes:
        problems.append(
            "there is nothing to evaluate; set evaluation.tasks, as in evaluation.tasks=[pubmedqa], or "
            "evaluation.probes, as in evaluation.probes=[held_out]."
        )
    if arguments.h2o is not None and not 0 < arguments.h2o <= 1:
        problems.append(f"--h2o is a share of the prompt's tokens, above 0 and at most 1; got {arguments.h2o:g}.")
    if arguments.h2o is not None and "positions" in options.probes:
        problems.append("evaluation.probes: 'positions' has no prompt that --h2o could compress; leave out one.")
    if arguments.server is not None:
        problems += _not_of_servers(arguments, options)
    if problems:
        raise UserError(*problems)
    from uniattn_pl.evaluation.open_server import open_server
    from uniattn_pl.evaluation.subject import Subject, find_subject
    from uniattn_pl.evaluation.tasks import check_names
    from uniattn_pl.inference.device import trainer_device

    subject = find_subject(arguments.source, loaded)
    if arguments.beside is not None and subject.run is None and not arguments.config:
        raise UserError(f"--beside {arguments.beside} needs a run, or its --config; '{subject}' is of none.")
    server = None if arguments.server is None else open_server(arguments.server)
    beside = None if arguments.beside is None else Subject(None, loaded.config.model.source, None)
    trainer_device(loaded.config)
    check_run_folder(subject.run or Path(loaded.config.trainer.default_root_dir))
    if "divergence" in options.probes and options.reference is not None:
        find_subject(options.reference, loaded)
    if options.tasks or server is not None:
        check_names(options.tasks)
    if {"held_out", "divergence"} & set(options.probes) or options.drop:
        check_rows(loaded)
    if arguments.dry_run:
        from uniattn_pl.modeling.loading.pretrained import check_folder

        if subject.folder is not None:
            check_folder(subject.folder)
        where = "" if server is None else f" at {server.url}"
        print(f"dry run: would evaluate {subject}{where} on {', '.join([*options.tasks, *options.probes])}.")
        return 0
    from uniattn_pl.display.quiet_libraries import quiet_libraries
    from uniattn_pl.evaluation.evaluate import evaluate

    quiet_libraries()
    evaluate(loaded, subject, retain_rate=arguments.h2o, server=server, beside=beside)
    return 0


def _not_of_servers(arguments: argparse.Namespace, options: EvaluationConfig) -> list[str]:
    """What a server cannot be asked for."""
    problems = [
        f"evaluation.probes: '{probe}' needs the model itself, not a server; leave it out, or --server."
        for probe in options.probes
        if probe not in PROBES_OF_SERVERS
    ]
    if arguments.h2o is not None or options.h2o or options.drop:
        problems.append("--server measures what is served; --h2o, evaluation.h2o and evaluation.drop change the model.")
    return problems
