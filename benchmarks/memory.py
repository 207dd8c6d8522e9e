"""Peak memory of stage 1 and stage 2 of a real model, beside what `plan` estimates.

    python benchmarks/memory.py --lengths 512 1024 --micro-batch-size 4
    python benchmarks/memory.py --model experts --lengths 512

`--dtypes mixed` is bfloat16 autocast on float32 weights, of which frozen ones stay in bfloat16, as in a fit.
`--teacher` has both stages learn from the original as well, on all tokens, as `training.distillation` does.
`experts` is a Mixtral of random weights whose activations weigh as much as its weights (8 experts, 2 for a token).
Each line is a process of its own: it loads the converted model, trains some steps with the module and the Trainer of
`fit`, and reads how far its anonymous memory (weights, gradients, optimizer state, activations; not the pages of
files) rose above what the interpreter and its libraries held before. The estimate is
`uniattn_pl.plan.training_memory.training_memory`, for one device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

STEPS = 2  # the second has optimizer states, and the first one's gradients while it runs forward
# The C library keeps freed memory for later; with these it gives tensors back at once, so that what is in use shows.
# In bfloat16 oneDNN keeps code for every number of rows that an expert has met: hundreds of MiB, whatever the model.
GIVE_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": "1000000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8",
}
SAMPLE_S = 0.002
EXPERTS, MIXED = "experts", "mixed"
EXPERTS_SIZES = {
    "vocab_size": 16384,
    "hidden_size": 512,
    "intermediate_size": 768,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512])
    parser.add_argument("--micro-batch-size", type=int, default=4)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--checkpointing", nargs="+", default=["no", "yes"], choices=["no", "yes"])
    parser.add_argument("--teacher", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_measure(json.loads(arguments.one))))
        return
    print(f"{'dtype':10} {'length':>6} {'checkpointing':13} {'stage':5} {'measured':>12} {'estimate':>12} {'ratio':>6}")
    for dtype in arguments.dtypes:
        for length in arguments.lengths:
            for checkpointing in arguments.checkpointing:
                for stage in (1, 2):
                    case = {
                        "model": arguments.model,
                        "dtype": dtype,
                        "length": length,
                        "checkpointing": checkpointing == "yes",
                        "stage": stage,
                        "batch": arguments.micro_batch_size,
                        "teacher": arguments.teacher,
                    }
                    found = _in_a_process(case)
                    measured, estimate = found["measured"] / 2**20, found["estimate"] / 2**20
                    print(
                        f"{dtype:10} {length:6} {checkpointing:13} {stage:5} {measured:8.0f} MiB {estimate:8.0f} MiB "
                        f"{estimate / measured:6.2f}",
                        flush=True,
                    )


def _in_a_process(case: dict[str, Any]) -> dict[str, int]:
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **GIVE_BACK})
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(case: dict[str, Any]) -> dict[str, int]:
    import lightning.pytorch as pl
    import torch

    from uniattn_pl import apply_architecture, load_model
    from uniattn_pl.config.sections.training_section import StageConfig
    from uniattn_pl.families.model_shape import shape_of
    from uniattn_pl.losses.row_logits import LOSS_CHUNK
    from uniattn_pl.plan.teacher_memory import compared_bytes, teacher_bytes
    from uniattn_pl.plan.training_memory import training_memory
    from uniattn_pl.training.lightning_module import PostTrainingModule

    torch.set_num_threads(1)
    batch, length, mixed = case["batch"], case["length"], case["dtype"] == MIXED
    dtype = "bfloat16" if mixed else case["dtype"]  # which the files are in
    before = _anonymous()
    with _Peak() as peak, tempfile.TemporaryDirectory() as folder:
        model = _experts(dtype) if case["model"] == EXPERTS else load_model(case["model"], dtype=dtype)
        shape = shape_of(model.config)
        apply_architecture(model, "uniattn", superblock_size=4, num_superblocks=4)
        for parameter in model.parameters():  # of the file until they are written to; here they count from the start
            parameter.data = parameter.data.float() if mixed else parameter.data.clone()
        if case["checkpointing"]:
            model.activation_checkpointing_enable({"use_reentrant": False})
        tokens = torch.randint(0, shape.vocab_size, (batch, length))
        labels = tokens.clone()
        labels[:, : length // 2] = -100
        sample = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
        objective = _distillation(case["model"], dtype, mixed=mixed) if case["teacher"] else None
        module = PostTrainingModule(
            model, stage=case["stage"], options=StageConfig(), halves_frozen=mixed, objective=objective
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=STEPS,
            precision="bf16-mixed" if mixed else "32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=Path(folder),
        )
        peak.highest = 0  # not what building the model took
        trainer.fit(module, torch.utils.data.DataLoader([sample] * STEPS, batch_size=None))  # type: ignore[arg-type]
    plan: Any = model.layer_plan
    weights = {"weight_bytes": 4 if mixed else model.dtype.itemsize, "frozen_bytes": 2 if mixed else None}
    estimate = training_memory(
        plan,
        shape,
        stage=case["stage"],
        micro_batch_size=batch,
        length=length,
        activation_bytes=2 if mixed else model.dtype.itemsize,
        gradient_checkpointing=case["checkpointing"],
        scored_fraction=1.0 if case["teacher"] else 0.5,
        loss_chunk=LOSS_CHUNK if case["teacher"] else None,
        **weights,
    ).total
    if case["teacher"]:
        estimate += teacher_bytes(plan, shape, whole=case["stage"] == 2, refitted=False, **weights)
        estimate += compared_bytes(shape, min(LOSS_CHUNK, batch * length))
    return {"measured": peak.highest - before, "estimate": estimate}


def _distillation(name: str, dtype: str, *, mixed: bool) -> Any:
    """What `training.distillation: {teacher: original}` minimises."""
    from uniattn_pl import load_model
    from uniattn_pl.config.sections.distillation_section import DistillationConfig, TermWeights
    from uniattn_pl.training.objectives.distillation_objective import DistillationObjective
    from uniattn_pl.training.objectives.teacher import Teacher

    def original() -> Any:
        teacher = load_model(name, dtype=dtype)
        for parameter in teacher.parameters():
            parameter.data = parameter.data.float() if mixed else parameter.data.clone()
        return teacher

    return DistillationObjective(DistillationConfig("original"), TermWeights(), Teacher(original, halves=mixed))


def _experts(dtype: str) -> Any:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM._from_config(MixtralConfig(**EXPERTS_SIZES), dtype=getattr(torch, dtype))


class _Peak:
    """The highest anonymous memory of this process while the block runs."""

    def __init__(self) -> None:
        self.highest, self._running = 0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            self.highest = max(self.highest, _anonymous())
            time.sleep(SAMPLE_S)


def _anonymous() -> int:
    """Bytes of this process that no file is behind."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
