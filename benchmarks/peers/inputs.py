"""What every environment reads: rows, questions, random tokens and model folders, made once by the package.

Only here are texts made into tokens, so that no version of a tokenizer stands between two methods.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS, SHORTEST_PROMPT = 100, 65  # SnapKV scores by the last 64 tokens and needs one more
LENGTHS, TRIALS, SEED = (512, 4096), 8, 0
LONGEST_TIMED = 4096
DROPPED = [15, 17, 19, 21, 23, 25]
SUPERBLOCKS = {"grouping_begin_idx": 14, "grouping_idx": 4, "grouping_end_idx": 30}  # the last 4 of 4 of 30 layers
SHARED = ("data.max_length=256", "calibration.num_samples=80")
FITS: dict[str, tuple[str, ...]] = {
    "uniattn": (),
    "llmdrop-half": (f"architecture={{name: llmdrop, layers: {DROPPED}, compensation: true}}",),
    "nbl-60": (
        "architecture={name: llmdrop, num_dropped: 12, ranking: cca, among: all, compensation: true}",
        "calibration.bias=true",
    ),
}


def prepare(inputs: Path, data: str, runs: Path, *, model: str = "smollm2-135m", rows: int = ROWS) -> None:
    """Write into `inputs` what the workers read; models that are there already are not fitted again."""
    from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer

    inputs.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(model)
    if not (inputs / "stock" / "config.json").exists():
        stock = load_model(model, dtype="float32")
        write_stock(stock, tokenizer, inputs / "stock")
    written = {
        "model": model,
        "rows": held_out_rows(tokenizer, data, rows),
        "questions": questions(tokenizer, LENGTHS, TRIALS),
        "random": random_tokens(len(tokenizer), LONGEST_TIMED),
    }
    (inputs / "inputs.json").write_text(json.dumps(written), encoding="utf-8")
    for name, words in FITS.items():
        if not (inputs / name).exists():
            fit(name, words, data, runs)
            (inputs / name).symlink_to((runs / name / "final").resolve())
    plan = json.loads((inputs / "nbl-60" / "config.json").read_text(encoding="utf-8"))["layer_plan"]
    further = [row["index"] for row in plan["rows"] if row["role"] == "drop"]
    layers = {"dropped": {"6 layers": DROPPED, "12 layers": further}, "superblocks": SUPERBLOCKS}
    (inputs / "layers.json").write_text(json.dumps(layers), encoding="utf-8")


def write_stock(model: Any, tokenizer: Any, folder: Path) -> None:
    """The unmodified model, for every version of transformers: older ones look for the base of rotations elsewhere."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"rope_theta": config["rope_parameters"]["rope_theta"], "torch_dtype": config["dtype"]}
    file.write_text(json.dumps(config, indent=1), encoding="utf-8")


def fit(name: str, words: Sequence[str], data: str, runs: Path) -> None:
    """Convert and calibrate by closed form, without training: one to four minutes on an idle core."""
    command = [sys.executable, "-m", "uniattn_pl", "fit"]
    for file in ("experiments/smollm2/pmc_uniattn.yaml", "configs/training/untrained.yaml"):
        command += ["--config", file]
    places = (f"trainer.default_root_dir={runs / name}", f"tracking.uri=sqlite:///{(runs / 'mlflow.db').resolve()}")
    runs.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, f"name=peers-{name}", f"data.source={data}", *places, *SHARED, *words], check=True)


def held_out_rows(tokenizer: Any, source: str, count: int) -> list[dict[str, Any]]:
    """The first held-out rows whose prompts are long enough for every method, in an order of their own."""
    from uniattn_pl.config.sections.data_section import DataConfig
    from uniattn_pl.data import InstructionDataModule

    config = DataConfig(source=source, format="pmc", validation_size=200, max_length=1024)
    module = InstructionDataModule(config, tokenizer, batch_size=1, micro_batch_size=1, eval_batch_size=1, seed=SEED)
    module.setup()
    rows = []
    for batch in module.validation_batches(200, 1):
        ids = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
        prompt = int((batch["labels"][0] != -100).nonzero()[0])
        if prompt >= SHORTEST_PROMPT:
            rows.append({"ids": ids, "prompt": prompt})
    random.Random(SEED).shuffle(rows)
    return rows[:count]


def questions(tokenizer: Any, lengths: Sequence[int], trials: int) -> list[dict[str, Any]]:
    """The package's needle probes: a pass key in filler, a value among keys, at five depths."""
    from uniattn_pl.data.prompt_ids import prompt_ids
    from uniattn_pl.evaluation.retrieval import DEPTHS, KINDS, lines_that_fit

    made = []
    for kind, make in KINDS.items():
        for length in lengths:
            lines = lines_that_fit(tokenizer, make, length)
            for number in range(trials):
                for depth in DEPTHS:
                    asked = make(lines, depth, random.Random(f"{SEED} {kind} {length} {depth} {number}"))
                    prompt = prompt_ids(tokenizer, asked.prompt)
                    whole = [prompt_ids(tokenizer, asked.prompt + answer) for answer in asked.candidates]
                    answers = [ids[len(prompt) :] for ids in whole]
                    group = {"group": f"{kind}_{length}", "length": length, "number": number}
                    made.append({**group, "prompt": prompt, "answers": answers})
    return made


def random_tokens(vocabulary: int, count: int) -> list[int]:
    """What times are measured on: no text, so that nothing ends early."""
    draw = random.Random(SEED)
    return [draw.randrange(vocabulary) for _ in range(count)]
