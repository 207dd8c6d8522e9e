"""Held-out loss when H2O compresses each prompt's cache before its response is scored (paper Table 3).

    python benchmarks/h2o.py --from runs/a runs/b          # trained or calibrated models, and the stock one
    python benchmarks/h2o.py --from runs/a --rows 40 --compress 0 0.2 0.4 0.6

Rows: the first held-out ones of the data the runs were made with. Retain: cache bytes after compression, measured,
relative to the stock model's whole cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any


def rows_of(run: Path, count: int) -> tuple[list[dict[str, Any]], Any]:
    """The held-out rows of a run, one per batch, and its config."""
    from uniattn_pl.config.sections.data_section import DataConfig
    from uniattn_pl.data import InstructionDataModule
    from uniattn_pl.modeling.loading.pretrained import load_tokenizer

    config = json.loads((run / "manifest.json").read_text())["config"]
    data = InstructionDataModule(
        DataConfig(**config["data"]),
        load_tokenizer(config["model"]["source"]),
        batch_size=1,
        micro_batch_size=1,
        eval_batch_size=1,
        seed=config["seed"],
    )
    data.setup()
    return data.validation_batches(count, 1), config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="runs", nargs="+", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--compress", nargs="+", type=float, default=[0.0, 0.2, 0.4, 0.6])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    from uniattn_pl.evaluation.compressed import compressed_response_loss
    from uniattn_pl.modeling.conversion.convert import unmodified_copy
    from uniattn_pl.modeling.loading.pretrained import load_folder, load_model
    from uniattn_pl.tracking.environment import describe_machine

    rows, config = rows_of(arguments.runs[0], arguments.rows)
    model = load_model(config["model"]["source"], dtype=config["model"]["dtype"])
    models = {"baseline": unmodified_copy(model)}
    for run in arguments.runs:
        models[run.name] = load_folder(run / "final")
    print(f"on {describe_machine()}; {len(rows)} rows of {config['data']['source']}")
    print(f"{'model':<28} {'compressed':>10} {'retain':>8} {'response loss':>14}")
    whole, results = None, []
    for name, subject in models.items():
        for share in arguments.compress:
            found = compressed_response_loss(subject, rows, 1 - share)
            whole = whole or found.kv_bytes_per_token
            results.append({"model": name, "compressed": share, **dataclasses.asdict(found)})
            retain = found.kv_bytes_per_token / whole
            print(f"{name:<28} {share:>10.0%} {retain:>8.1%} {found.response_loss:>14.4f}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
