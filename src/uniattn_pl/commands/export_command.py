"""`export`: the model of a run as a folder or a file that others load."""

from __future__ import annotations

import argparse
from pathlib import Path

from uniattn_pl.commands.arguments import Parser, load
from uniattn_pl.commands.model_source import add_source_arguments, find_model_folder
from uniattn_pl.config.paths import path_argument
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.exporting.export_target import GGUF_DTYPES, check_gguf_target, check_target

DESCRIPTION = """\
Writes the model of a run, with its tokenizer, for others to load:

  --format folder   an ordinary Hugging Face folder (default). After `import uniattn_pl`,
                    AutoModelForCausalLM.from_pretrained(FOLDER) loads it; with --standalone also without this
                    package, given trust_remote_code=True. vLLM serves it with this package's plugin.
  --format gguf     one file for stock llama.cpp and what is built on it: plans of dropped layers, with W_c or
                    without, blocks left out, and fewer heads of keys and values.
  --format decilm   a folder that vLLM, SGLang, TensorRT-LLM and MLX-LM read as nemotron-nas; the same plans,
                    but not every engine takes every layer, which the command says.
  --format onnx     a folder with two graphs, of a prompt and of a step, that onnxruntime runs with the plan's
                    cache; pt2: the same as programs of torch.export.

A plan that a format cannot say is refused, with the engine that can serve it. A peft adapter folder is merged
into its base."""
EXAMPLE = """\
  uniattn-pl export --from runs/quickstart/UniAttn --to exported/quickstart
  uniattn-pl export --from runs/quickstart/UniAttn --to exported/anywhere --standalone
  uniattn-pl export --from runs/smollm2-pmc-llmdrop-half-compensated --to exported/half.gguf --format gguf"""

FOLDER, GGUF, DECILM, *PROGRAMS = FORMATS = ("folder", "gguf", "decilm", "onnx", "pt2")


def add_arguments(parser: Parser) -> None:
    """Add the options of `export`."""
    add_source_arguments(parser)
    parser.add_argument(
        "--to", dest="target", type=path_argument, metavar="PLACE", help="the folder, or the .gguf file, to write"
    )
    parser.add_argument("--format", default=FOLDER, metavar="FORMAT", help=f"{', '.join(FORMATS)}; default: {FOLDER}")
    parser.add_argument(
        "--dtype",
        metavar="DTYPE",
        help="of a GGUF file's matrices: f32, f16, bf16 or q8_0; default: as the model has them",
    )
    parser.add_argument(
        "--push-to-hub",
        dest="repository",
        metavar="OWNER/NAME",
        help="send what was written to this repository of the hub, made private where it is not there; the token is "
        "HF_TOKEN in the environment",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model folder, or a file, that is there")
    parser.add_argument(
        "--standalone", action="store_true", help="add the code that loads the folder without this package"
    )
    parser.add_argument(
        "--drop",
        type=_layer_indices,
        default=[],
        metavar="LAYERS",
        help="remove the attention of these layers too, as in 27,28 (0-based)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check what is given and where it goes, then write."""
    if arguments.print_config:
        print(load(arguments).to_yaml(), end="")
        return 0
    _check_options(arguments)
    source, target = find_model_folder(arguments), arguments.target
    if arguments.format == GGUF:
        check_gguf_target(source, target, overwrite=arguments.overwrite)
    else:
        check_target(source, target, overwrite=arguments.overwrite)
    if arguments.repository is not None:
        from uniattn_pl.exporting.hub_upload import check_upload

        check_upload(arguments.repository)
    if arguments.dry_run:
        _check_model(arguments, source)
        sent = "" if arguments.repository is None else f", and send it to '{arguments.repository}' on the hub"
        print(f"dry run: would write the model of {source} to {target}{sent}.")
        return 0
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of single-file transfers, which take a moment
    write = {FOLDER: _write_folder, GGUF: _write_gguf, DECILM: _write_decilm}.get(arguments.format, _write_program)
    write(arguments, source)
    if arguments.repository is not None:
        from uniattn_pl.exporting.hub_upload import upload

        print(f"sent to {upload(target, arguments.repository)}")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    problems = []
    if arguments.format not in FORMATS:
        near = did_you_mean(arguments.format, FORMATS)
        problems.append(f"--format '{arguments.format}' is none.{near} Formats: {', '.join(FORMATS)}.")
    if arguments.target is None:
        problems.append("export needs --to PLACE, the folder or the file to write.")
    if arguments.dtype is not None and arguments.format != GGUF:
        problems.append("--dtype is of --format gguf; folders keep the dtype of the model.")
    elif arguments.dtype not in (None, *GGUF_DTYPES):
        near = did_you_mean(arguments.dtype, GGUF_DTYPES)
        problems.append(f"--dtype '{arguments.dtype}' is none.{near} A GGUF file has {', '.join(GGUF_DTYPES)}.")
    if arguments.standalone and arguments.format != FOLDER:
        problems.append(f"--standalone is of --format {FOLDER}: engines that read {arguments.format} bring their code.")
    if problems:
        raise UserError(*problems)
    if arguments.format in PROGRAMS:
        from uniattn_pl.exporting.programs.export_program import check_packages

        check_packages(arguments.format)


def _check_model(arguments: argparse.Namespace, source: Path) -> None:
    """What can be seen without reading weights."""
    if arguments.format == GGUF:
        from uniattn_pl.exporting.gguf.export_gguf import check_gguf_folder

        check_gguf_folder(source, drop=arguments.drop)
    elif arguments.format == DECILM:
        from uniattn_pl.exporting.decilm.export_decilm import check_decilm_folder

        check_decilm_folder(source, drop=arguments.drop)
    else:
        from uniattn_pl.modeling.loading.pretrained import check_folder

        check_folder(source)


def _write_folder(arguments: argparse.Namespace, source: Path) -> None:
    from uniattn_pl.exporting.export import export

    target = arguments.target
    export(source, target, overwrite=arguments.overwrite, standalone=arguments.standalone, drop=arguments.drop)
    print(f"exported {source} to {target}")


def _write_gguf(arguments: argparse.Namespace, source: Path) -> None:
    from rich.console import Console

    from uniattn_pl.display.progress import ProgressReporter
    from uniattn_pl.exporting.gguf.export_gguf import AUTO_DTYPE, export_gguf

    target: Path = arguments.target
    with ProgressReporter("tensors", Console(stderr=True)) as progress:
        dtype = export_gguf(
            source, target, dtype=arguments.dtype or AUTO_DTYPE, drop=arguments.drop, tell=progress.update
        )
    print(f"exported {source} to {target}: {target.stat().st_size / 2**20:,.0f} MiB, matrices in {dtype}")
    print("llama.cpp keeps values as narrow as the plan says with flash attention on, its default where it can.")


def _write_decilm(arguments: argparse.Namespace, source: Path) -> None:
    from uniattn_pl.exporting.decilm.export_decilm import engine_lines, export_decilm

    obstacles = export_decilm(source, arguments.target, overwrite=arguments.overwrite, drop=arguments.drop)
    print(f"exported {source} to {arguments.target}")
    print(engine_lines(obstacles))


def _write_program(arguments: argparse.Namespace, source: Path) -> None:
    from uniattn_pl.exporting.programs.export_program import export_program

    words = {"overwrite": arguments.overwrite, "drop": arguments.drop}
    difference = export_program(source, arguments.target, arguments.format, **words)
    print(f"exported {source} to {arguments.target}; its logits differ from the model's by {difference:.1e} at most")


def _layer_indices(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected layer indices separated by commas, got '{text}'") from None
