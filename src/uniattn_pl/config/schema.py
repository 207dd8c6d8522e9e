"""The typed schema of an experiment file; every key a user may write is a field here.

Field metadata: `help` is shown by the documentation and the command line, `allowed` lists the admissible values,
`minimum` and `maximum` (inclusive) bound numbers, `path` has `~` and `$VARIABLE` expanded; `config/typing_rules.py`
enforces them. Rules between keys are in `config/checks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from uniattn_pl.families.attention_kernels import ATTENTION_BACKENDS
from uniattn_pl.options import option
from uniattn_pl.plan import REUSE_MODES

EMBEDDED = "embedded"
DATA_SUFFIXES = (".json", ".jsonl", ".parquet")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
# Lightning and numpy take seeds below 2**32; stages and ranks add their numbers to it
LARGEST_SEED = 2**31 - 1
# far beyond what fits anywhere: a number with too many digits is told before memory is asked for it
LARGEST_BATCH, LONGEST, MOST_PROCESSES = 2**20, 2**24, 2**12
EVERY_KERNEL = "installed"
DTYPES = ("auto", "float32", "bfloat16", "float16")
INITIALISERS = {
    "zero": "W_c = 0: unification without compensation",
    "theorem37": "closed form of the paper's Theorem 3.7, on the mean over samples per position",
    "least_squares": "ridge regression of W_c on the attention error, over all tokens",
    "joint_least_squares": "ridge regression of W_o and W_c together, over all tokens",
}
LEAST_SQUARES = ("least_squares", "joint_least_squares")
HEAD_ALIGNMENTS = {
    "none": "head h of a reuse layer uses the map of the source's head h",
    "similarity": "it uses the source head whose map is most like its own",
    "output_error": "it uses the source head whose map leaves the least error in its output",
}
PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed")
STRATEGIES = {
    "auto": "one device: single; several: ddp where a full copy of the training state fits on each, else fsdp",
    "single": "one device",
    "ddp": "every device holds the whole model",
    "fsdp": "weights, gradients and optimizer state are sharded over all devices (FSDP2)",
}
SAMPLES = {"stratified": "rows of every answer, in the proportion in which they are there", "shuffled": "any rows"}
PROBES = {
    "held_out": "loss and perplexity on the validation rows of `data`",
    "positions": "loss by position on a long text",
    "retrieval": "finding a pass key in filler, and a value among keys, by length and depth",
}
CHECKPOINT_FORMATS = {
    "full": "one file that any strategy reads, gathered on rank 0",
    "sharded": "a folder in which each rank writes its own part; fsdp only",
}


@dataclass
class ModelConfig:
    """Which pre-trained model, and how it is held in memory."""

    source: str = option("smollm2-135m", "hub id, local folder, .gguf file, or a name from `list models`", path=True)
    dtype: str = option("auto", "auto: bfloat16 where the hardware has it, else float32", allowed=DTYPES)
    attn_implementation: str = option(
        "sdpa", "attention kernel of layers that compute their map", allowed=ATTENTION_BACKENDS
    )
    reuse: str = option(
        "auto",
        "how reuse layers get the map: kept (materialise), computed again (replay), kept by Triton on a card (tiles)",
        allowed=REUSE_MODES,
    )
    map_memory_mib: int | None = option(
        None, "MiB for one attention map, bounds the chunks of a prefill; default: by the device", minimum=1
    )
    revision: str | None = option(None, "branch, tag or commit of a hub model")
    trust_remote_code: bool = option(False, "run Python code that comes with a hub model")


@dataclass
class DataConfig:
    """Where instruction / input / output rows come from and how they become token sequences."""

    source: str = option(EMBEDDED, "'embedded', a .json / .jsonl / .parquet file, or a hub data set name", path=True)
    split: str = option("train", "split of a hub data set")
    format: str = option(
        "auto", "row format; auto looks at the keys", allowed=("auto", "alpaca", "pmc", "tulu3", "infinity_instruct")
    )
    validation_source: str | None = option(None, "a source for validation; default: split off the first", path=True)
    validation_size: int = option(200, "rows held out for validation", minimum=1)
    num_samples: int | None = option(None, "rows used, shuffled (train + validation); default: all", minimum=1)
    shuffle_seed: int = option(0, "seed of the train / validation split", minimum=0, maximum=LARGEST_SEED)
    max_length: int = option(
        512, "tokens per sequence, prompt and response; longer ones are cut and counted", minimum=8, maximum=LONGEST
    )
    on_bad_row: str = option("error", "error: stop at the first bad row; skip: count them", allowed=("error", "skip"))
    num_workers: int = option(0, "processes that make batches ahead", minimum=0, maximum=MOST_PROCESSES)
    packing: bool = option(False, "several rows in one training sequence of max_length; none sees another")
    token_cache: bool = option(True, "keep tokens on disk, so that the same rows are not tokenised again")


@dataclass
class CalibrationConfig:
    """How the compensation W_c starts (paper section 3.3, Theorem 3.7)."""

    initialiser: str = option("joint_least_squares", "how W_c (and W_o) are fitted", allowed=tuple(INITIALISERS))
    num_samples: int = option(1000, "training sequences of the pass (paper: 1,000)", minimum=1)
    skip_samples: int = option(0, "training sequences passed over first, for another sample", minimum=0)
    held_out_samples: int = option(32, "validation sequences on which the error is reported", minimum=1)
    batch_size: int = option(8, "sequences advanced together", minimum=1, maximum=LARGEST_BATCH)
    ridge: float | str = option(1e-2, "times the Gram matrix's mean diagonal; auto: on held-out rows, by layer")
    rank: int | str | None = option(None, "of W_c as two thin matrices; auto: chosen by layer; null: full", minimum=1)
    rank_keeps: float | None = option(None, "share of the repaired error rank=auto keeps; default: 0.95", maximum=1)
    head_alignment: str = option("none", "which head of its source a reuse head uses", allowed=tuple(HEAD_ALIGNMENTS))
    memory_limit_gib: float = option(0.0, "hidden streams beyond this go to temporary files ($TMPDIR)", minimum=0.0)
    device_memory_limit_gib: float | None = option(
        None, "hidden streams that stay on a GPU, besides; default: a quarter of what is free there", minimum=0.0
    )


@dataclass
class StageConfig:
    """One stage of training (stage 1: only W_c; stage 2: everything)."""

    enabled: bool = option(True, "run this stage")
    learning_rate: float = option(2e-5, "peak learning rate of AdamW", minimum=0.0)
    weight_decay: float = option(0.0, "AdamW weight decay", minimum=0.0)
    max_epochs: int = option(1, "epochs over the training rows", minimum=1)
    max_steps: int | None = option(None, "optimizer steps at most; default: all of max_epochs", minimum=1)
    warmup_ratio: float = option(0.03, "fraction of the stage's steps with a linear warm-up", minimum=0.0)
    schedule: str = option("cosine", "decay after warm-up", allowed=("cosine", "linear", "constant"))


@dataclass
class EarlyStopConfig:
    """When stage 1 ends: the exponential moving average of its loss stops falling (paper Algorithm 1)."""

    enabled: bool = option(True, "stop stage 1 early")
    decay: float = option(0.9, "decay of the moving average", minimum=0.0)
    patience: int = option(20, "steps without improvement", minimum=1)
    min_delta: float = option(1e-3, "smallest improvement that counts", minimum=0.0)


@dataclass
class LoraConfig:
    """Stage 2 as low-rank updates (peft) instead of a full fine-tune; W_c and a re-fitted W_o train in full."""

    enabled: bool = option(False, "train low-rank updates in stage 2; the final model has them merged")
    rank: int = option(16, "rank of the updates", minimum=1)
    alpha: float | None = option(None, "scale, divided by the rank; default: twice the rank", minimum=0.0)
    dropout: float = option(0.0, "dropout in front of the updates", minimum=0.0)
    target_modules: list[str] = option([], "projections that get updates; default: those of the attention")


@dataclass
class TrainingConfig:
    """The two-stage post-training."""

    batch_size: int = option(
        48, "sequences per optimizer step, over all devices (paper Table 4: 48)", minimum=1, maximum=LARGEST_BATCH
    )
    micro_batch_size: int = option(4, "sequences per forward on one device", minimum=1, maximum=LARGEST_BATCH)
    precision: str = option("auto", "auto: true precision in the model's dtype", allowed=PRECISIONS)
    strategy: str = option("auto", "how the work is divided over devices", allowed=tuple(STRATEGIES))
    cpu_offload: bool = option(False, "fsdp: keep the shards in main memory between uses")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass")
    chunked_loss: bool = option(False, "compute logits and loss in pieces: less memory with large vocabularies")
    router_loss: bool | None = option(None, "add the family's loss of its routers; null: if the model's config has it")
    max_grad_norm: float | None = option(1.0, "clip the global gradient norm; null: never", minimum=0.0)
    checkpoint_every_steps: int = option(50, "steps between resumable checkpoints", minimum=1)
    checkpoint_format: str = option("full", "how a resumable checkpoint is written", allowed=tuple(CHECKPOINT_FORMATS))
    lora: LoraConfig = field(default_factory=LoraConfig)
    stage1: StageConfig = field(default_factory=lambda: StageConfig(learning_rate=1e-4))
    stage2: StageConfig = field(default_factory=StageConfig)
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)


@dataclass
class TrainerConfig:
    """Arguments of the Lightning Trainer."""

    accelerator: str = option("auto", "which kind of device; auto: a GPU where there is one", allowed=ACCELERATORS)
    devices: int | str = option("auto", "number of devices on a node, or auto", maximum=MOST_PROCESSES)
    num_nodes: int = option(1, "number of machines", minimum=1, maximum=MOST_PROCESSES)
    deterministic: bool = option(False, "deterministic kernels only")
    log_every_n_steps: int = option(1, "steps between logged metrics", minimum=1)
    default_root_dir: str = option("runs/${name}", "folder of checkpoints and of the run's manifest", path=True)


@dataclass
class EvaluationConfig:
    """What a fit measures on held-out rows before, between and after the stages, and what `evaluate` measures."""

    num_samples: int = option(200, "validation sequences at most", minimum=1)
    batch_size: int = option(8, "sequences per forward", minimum=1, maximum=LARGEST_BATCH)
    tasks: list[str] = option([], "names of lm-evaluation-harness tasks")
    num_fewshot: int | None = option(None, "examples in each prompt; default: as the task says", minimum=0)
    data_dir: str | None = option(None, "folder of TASK/SPLIT.jsonl; default: each task's hub data set", path=True)
    limit: int | None = option(None, "rows per task; default: all", minimum=1)
    sample: str = option("stratified", "which rows `limit` leaves", allowed=tuple(SAMPLES))
    sample_seed: int = option(0, "seed of which rows, and what retrieval hides", minimum=0, maximum=LARGEST_SEED)
    probes: list[str] = option([], "measured besides tasks: " + ", ".join(PROBES))
    held_out_rows: int | None = option(None, "validation rows of `held_out`; default: num_samples", minimum=1)
    text: str | None = option(None, "plain text file on which `positions` is measured", path=True)
    windows: int | None = option(None, "windows of the text at most; default: all", minimum=1)
    lengths: list[int] = option(
        [512, 2048, 8192], "tokens of retrieval's texts; the largest is positions' window", maximum=LONGEST
    )
    trials: int = option(5, "texts of retrieval at each length and depth", minimum=1)
    h2o: list[float] = option([], "measure again with each prompt's cache compressed by H2O to these parts (Table 3)")
    drop: list[int] = option(
        [], "measure again with the attention of so many reuse layers dropped, the least important ones (Figure 5)"
    )


@dataclass
class BenchConfig:
    """What `bench` measures, besides this experiment's architecture and its references."""

    lengths: list[int] = option([512, 4096, 8192], "tokens of the prompt", maximum=LONGEST)
    batch_sizes: list[int] = option([1], "sequences decoded together", maximum=LARGEST_BATCH)
    backends: list[str] = option(
        ["sdpa"], f"attention kernels: {', '.join(ATTENTION_BACKENDS)}; {EVERY_KERNEL}: every one that is here"
    )
    beside: list[str] = option([], "config files whose architectures are measured in the same process", path=True)
    new_tokens: int = option(
        17, "tokens generated per measurement, the first by the prefill", minimum=2, maximum=LONGEST
    )
    rounds: int = option(5, "measurements of each model at each setting, interleaved", minimum=1)
    chunk_size: int | None = option(None, "queries per chunk of the prefill; default: by memory", minimum=1)
    compile: bool = option(False, "decode by a compiled step over a static cache: a CUDA graph on a card")
    tune_kernels: bool = option(False, "first measure where tiles of maps win on this card, for reuse=auto")


@dataclass
class TrackingConfig:
    """Where MLflow keeps runs."""

    uri: str = option("sqlite:///mlruns/mlflow.db", "MLflow tracking URI", path=True)
    experiment: str = option("uniattn_pl", "MLflow experiment name")
    artifact_location: str | None = option(
        "mlruns/artifacts", "artifact folder of a new experiment on a local store", path=True
    )
    parent_run: str | None = option(None, "MLflow run that this one is shown under; a sweep sets it for its points")


@dataclass
class SweepConfig:
    """What `sweep` runs: every named point, at every combination of the grid, with every seed."""

    grid: dict[str, Any] = option({}, "config key: list of its values; all combinations are run")
    points: dict[str, Any] = option({}, "name of a point: the config keys it sets")
    seeds: list[int] = option(
        [], "seeds of every point; default: this experiment's seed alone", minimum=0, maximum=LARGEST_SEED
    )
    max_steps: int | None = option(None, "optimizer steps of each stage at most, in every point", minimum=1)
    retries: int = option(1, "how often a point that failed is tried again, behind all others", minimum=0)
    prune_after: int | None = option(
        None,
        "stop a point whose loss after initialisation or stage 1 is above the median of so many others; default: never",
        minimum=1,
    )
    storage: str | None = option(
        None, "database of the ledger (SQLAlchemy URL); default: sqlite in the sweep's folder", path=True
    )


@dataclass
class ReportConfig:
    """What `report` shows of a sweep: one row per point, a column per metric, and figures."""

    title: str = option("", "heading; default: the name of the experiment")
    columns: dict[str, Any] = option(
        {},
        "heading of a column: an MLflow metric, METRIC@STEP for its value at one step, or a list of other columns, "
        "of which it is the mean; default: what the runs have",
    )
    figures: dict[str, Any] = option(
        {}, "name of a figure: {x: column, config key or 'drop', y: [columns]}, one point or curve per row"
    )
    analysis: list[str] = option([], "figures of an `analyze` of the same model and data, such as similarity_matrix")


@dataclass
class ExperimentConfig:
    """One experiment, as written in a file and on the command line."""

    name: str = option("experiment", "name of the run and of its folder")
    seed: int = option(0, "seed of weights, data order and everything random", minimum=0, maximum=LARGEST_SEED)
    model: ModelConfig = field(default_factory=ModelConfig)
    architecture: dict[str, Any] = option({"name": "uniattn"}, "name from `list architectures`, and its options")
    data: DataConfig = field(default_factory=DataConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
