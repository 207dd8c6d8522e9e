"""What the calibration pass costs: time in forward passes over the same tokens, and peak memory by sample count.

    python benchmarks/calibration.py                       # both, SmolLM2-135M, Superblocks 4 x 4
    python benchmarks/calibration.py --initialiser least_squares --samples 32 --rounds 5

Time: one process; each round runs a whole forward of the original model over the calibration tokens, then the
calibration, in alternating order; the ratio is taken round by round. Memory: a fresh process per sample count,
its peak resident set during calibration and what that is above the loaded model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def prepare(arguments: argparse.Namespace, samples: int) -> dict[str, Any]:
    from uniattn_pl.architectures import UniAttn
    from uniattn_pl.config.sections.data_section import DataConfig
    from uniattn_pl.data import InstructionDataModule
    from uniattn_pl.families.model_shape import shape_of
    from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer

    model = load_model(arguments.model, dtype=arguments.dtype)
    data = InstructionDataModule(
        DataConfig(source=arguments.data, validation_size=16, num_samples=samples + 16),
        load_tokenizer(arguments.model),
        batch_size=8,
        micro_batch_size=8,
        eval_batch_size=8,
        seed=0,
    )
    data.setup()
    return {
        "model": model,
        "plan": UniAttn().compile(shape_of(model.config)),
        "batches": data.train_batches(samples, 8),
        "held_out": data.validation_batches(16, 8),
    }


def run_calibration(prepared: dict[str, Any], arguments: argparse.Namespace, held_out: bool) -> float:
    from uniattn_pl.calibration import calibrate
    from uniattn_pl.modeling.conversion.convert import converted_copy

    converted = converted_copy(prepared["model"], prepared["plan"])
    start = time.perf_counter()
    calibrate(
        prepared["model"],
        converted,
        prepared["batches"],
        prepared["held_out"] if held_out else [],
        initialiser=arguments.initialiser,
        memory_limit_bytes=int(arguments.memory_limit_gib * 2**30),
    )
    return time.perf_counter() - start


def run_forward(prepared: dict[str, Any]) -> float:
    import torch

    decoder = prepared["model"].get_decoder()
    start = time.perf_counter()
    with torch.no_grad():
        for batch in prepared["batches"]:
            decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return time.perf_counter() - start


def measure_time(arguments: argparse.Namespace) -> None:
    prepared = prepare(arguments, arguments.samples)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in prepared["batches"])
    dtype = prepared["model"].dtype
    print(f"{arguments.model}, {dtype}, {arguments.initialiser}, {arguments.samples} samples, {tokens} tokens")
    ratios = []
    run_forward(prepared)
    for round_number in range(arguments.rounds):
        if round_number % 2:
            calibration, forward = run_calibration(prepared, arguments, held_out=False), run_forward(prepared)
        else:
            forward, calibration = run_forward(prepared), run_calibration(prepared, arguments, held_out=False)
        ratios.append(calibration / forward)
        print(f"  round {round_number + 1}: forward {forward:.2f} s, calibration {calibration:.2f} s", flush=True)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"calibration / forward: median {middle:.2f} (min {low:.2f}, max {high:.2f}), {arguments.rounds} rounds")


def measure_memory(arguments: argparse.Namespace) -> None:
    """In this process: peak memory of one calibration, printed as JSON."""
    prepared = prepare(arguments, arguments.samples)
    # Forget the peak of loading the model, which may be higher (Linux).
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    run_calibration(prepared, arguments, held_out=True)
    used = sum(len(batch["input_ids"]) for batch in prepared["batches"])
    print(json.dumps({"samples": used, "before_mib": before, "peak_mib": resident_mib("VmHWM")}))


def resident_mib(kind: str) -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(kind)) / 1024


def compare_memory(arguments: argparse.Namespace) -> None:
    for samples in arguments.memory_samples:
        command = [sys.executable, __file__, "--memory-of-this-process", "--samples", str(samples)]
        for name in ("model", "dtype", "data", "initialiser", "memory_limit_gib"):
            command += ["--" + name.replace("_", "-"), str(getattr(arguments, name))]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        measured = json.loads(output.splitlines()[-1])
        print(
            f"{measured['samples']} samples: peak {measured['peak_mib']:.0f} MiB, "
            f"{measured['peak_mib'] - measured['before_mib']:.0f} MiB above the loaded model",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--data", default="embedded", help="as data.source in a config")
    parser.add_argument("--initialiser", default="joint_least_squares")
    parser.add_argument("--memory-limit-gib", type=float, default=0.0)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-samples", type=int, nargs="*", default=[50, 400])
    parser.add_argument("--memory-of-this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of_this_process:
        measure_memory(arguments)
        return
    measure_time(arguments)
    compare_memory(arguments)


if __name__ == "__main__":
    main()
