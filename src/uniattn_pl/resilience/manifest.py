"""The run folder's manifest: how far a fit has come, written atomically, and the lock that guards it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from uniattn_pl.config.loaded_config import flatten
from uniattn_pl.config.sections.calibration_section import RefineConfig
from uniattn_pl.config.sections.data_section import CHAT, PAPER, SELF
from uniattn_pl.config.sections.dpo_section import DPO, SFT
from uniattn_pl.config.sections.measuring_sections import EvaluationConfig
from uniattn_pl.errors import UserError
from uniattn_pl.files import atomic_file
from uniattn_pl.plan.saved_form import current_role, former_role
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, MODEL, TEACHER, TEMPLATE, TRAINING_ROWS
from uniattn_pl.run_folder import SEARCH_FOLDER
from uniattn_pl.tracking.fit_result import FitResult

PHASES = ("prepare", "initialise", "stage1", "stage2", "finish", "done")
FILE_NAME, LOCK_NAME = "manifest.json", ".lock"
PLACEMENT = frozenset(
    {
        *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "default_root_dir")),
        "training.strategy",
        "training.cpu_offload",
        "training.checkpoint_format",
        "training.checkpoint_every_steps",
        "training.micro_batch_size",
        "calibration.device_memory_limit_gib",
        "data.num_workers",
        "data.token_cache",
        "training.distillation.cache",
        "training.distillation.cache_limit_gib",
        *(f"tracking.{name}" for name in ("uri", "experiment", "artifact_location", "parent_run", "register_as")),
        *(f"tracking.{name}" for name in ("system_metrics", "also")),
    }
)
# What is measured once the fit is done: changed without a change of the fit.
AFTERWARDS = frozenset(
    f"evaluation.{field.name}" for field in fields(EvaluationConfig) if field.name not in ("num_samples", "batch_size")
)
OTHERS = ("bench.", "sweep.", "report.")  # sections of other commands
SELF_TEXT = "data.self_text."  # settings that count where text is sampled
OWN_KEYS = ("name", "trainer.default_root_dir")  # every run has its own
# Keys that runs of former versions do not have: null is what those did.
ADDED_KEYS = frozenset(
    {"training.router_loss", "training.eval_every_steps", "training.lora.quantization", "calibration.bias"}
    | {f"data.{name}" for name in ("further_sources", "more_files", "roles", "sources", "text_column")}
    | {f"training.stage{number}.w_c_learning_rate" for number in (1, 2)}
    | {f"calibration.{name}" for name in ("rank_keeps", *(f"refine.{one.name}" for one in fields(RefineConfig)))}
)
# The same, where what they did has a name.
ADDED_VALUES = {
    **dict.fromkeys(("data.pack_documents", "data.remove_overlap", "data.streaming"), False),
    "data.shuffle_buffer": 10_000,
    "architecture.score": "loss",
    "architecture.cross_attention": False,
    "architecture.proposals": "greedy",
    "architecture.pool": 8,
    "architecture.swaps": 0,
    "architecture.distilled": 0,
    "architecture.distill_steps": 30,
    "training.distillation.stage1.maps": 0.0,
    "training.distillation.stage2.maps": 0.0,
    "training.optimizer": "adamw",
    "training.keep": "last",
    "training.early_stop.monitor": "training_loss",
    "training.early_stop.stages": [1],
    "training.lora.dora": False,
    "data.template": PAPER,
    "data.loss_turns": "all",
    "training.objective": SFT,
}
FORMER_DEFAULTS = {"architecture.num_superblocks": 4}  # of keys that may be left open now
# Without a teacher nothing of its section matters.
DISTILLATION = "training.distillation."
TEACHER_KEY = DISTILLATION + "teacher"
# Nor does anything of the other section where preferences are not learned.
PREFERENCES, OBJECTIVE_KEY = "training.dpo.", "training.objective"
MIXTURE = "data.sources"  # a list, of whose entries all but the places count
# Names of places -> what is compared of them by content.
SOURCES = {
    "model.source": MODEL,
    "model.revision": MODEL,
    "data.source": TRAINING_ROWS,
    "data.more_files": TRAINING_ROWS,
    "data.further_sources": TRAINING_ROWS,
    MIXTURE: TRAINING_ROWS,
    "data.self_text.prompts": TRAINING_ROWS,
    "data.validation_source": HELD_OUT_ROWS,
    TEACHER_KEY: TEACHER,
}
TEMPLATE_KEY = "data.template"  # a file, whose contents count, or the model's own, or none
ROLES_KEY = "architecture.kinds"


@dataclass
class Manifest:
    """What must survive a kill: everything else can be computed again from it and the folders it vouches for.

    Attributes:
        config: the experiment as plain data, credentials removed; a resumed fit must have the same.
        fit_id: identifies the fit in the tracking store even before a run id is known.
        phase: the phase to run next, one of `PHASES`; "done" when the fit is finished.
        results: per finished phase, its measured results.
        mlflow_run_id: the run of this fit.
        step_offset: optimizer steps of the stages before the current one.
        identity: digests of what the results rest on (`resilience.identity`); a resumed fit must have the same.
            Empty: begun by a version that did not record it.
        accepted: changes of it that the user has allowed, each with the phase that was to be run next.
        folder: where the run was when this was written, absolute; None: written by a version that did not record it.
    """

    config: dict[str, Any]
    fit_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    phase: str = PHASES[0]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    step_offset: int = 0
    identity: dict[str, str] = field(default_factory=dict)
    accepted: list[dict[str, str]] = field(default_factory=list)
    folder: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the folder's manifest, or None when there is none.

        Raises:
            UserError: the file is not a manifest of this version.
        """
        path = folder / FILE_NAME
        if not path.exists():
            return None
        try:
            manifest = cls(**json.loads(path.read_text(encoding="utf-8")))
            _use_current_roles(manifest.config)
            PHASES.index(manifest.phase)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path} is not a manifest this version understands ({error}); "
                f"delete the folder {folder} or choose another trainer.default_root_dir."
            ) from error
        return manifest

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest in one step: a reader sees the old or the new one, also after a power cut."""
        with atomic_file(folder / FILE_NAME) as file:
            file.write((json.dumps(asdict(self), indent=2) + "\n").encode())

    def commit(self, folder: Path, results: Mapping[str, Any], *, step_offset: int | None = None) -> None:
        """Record that the current phase is finished, with its results, and move to the next one."""
        self.advance(results, step_offset=step_offset)
        self.write(folder)

    def advance(self, results: Mapping[str, Any], *, step_offset: int | None = None) -> None:
        """As `commit`, in memory only: what ranks other than 0 do."""
        self.results[self.phase] = dict(results)
        self.phase = PHASES[PHASES.index(self.phase) + 1]
        if step_offset is not None:
            self.step_offset = step_offset

    def rewind(self, phase: str) -> None:
        """Go back to a phase whose product was lost; what came after it is forgotten."""
        for later in PHASES[PHASES.index(phase) :]:
            self.results.pop(later, None)
        self.phase = phase
        self.step_offset = sum(result["stage"]["steps"] for result in self.results.values() if "stage" in result)

    @property
    def plan(self) -> dict[str, Any] | None:
        """The plan as it is saved, with the layers and the ranks that were chosen so far; None: nothing is recorded."""
        phases = (self.results.get(phase, {}) for phase in ("initialise", "prepare"))
        return next((phase["plan"] for phase in phases if "plan" in phase), None)

    def result(self, folder: Path, tracking_uri: str) -> FitResult:
        """The finished fit's result, from what its phases left here."""
        return FitResult.from_results(
            self.results,
            run_folder=folder,
            model_folder=folder / "final",
            mlflow_run_id=self.mlflow_run_id,
            tracking_uri=tracking_uri,
        )

    def changes(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Keys of `config` that differ from what this folder was started with: {key: (before, now)}.

        Where a fit runs, how it is cut into pieces, and what is measured afterwards may change: its results are the
        same up to rounding. Neither do names count where the contents behind them are known, which decide.
        """
        before, now = (self._without_names(compared(one)) for one in (self.config, config))
        missing = "(not set)"
        pairs = {
            key: tuple(values.get(key, ADDED_VALUES.get(key, missing)) for values in (before, now))
            for key in sorted({*before, *now})
        }
        return {key: (a, b) for key, (a, b) in pairs.items() if a != b and not self._same_template(key, a, b)}

    def _without_names(self, values: Mapping[str, Any]) -> dict[str, Any]:
        counted = {key: value for key, value in values.items() if SOURCES.get(key) not in self.identity}
        if MIXTURE in values.keys() - counted:
            counted[MIXTURE] = [{k: v for k, v in entry.items() if k != "source"} for entry in values[MIXTURE]]
        return counted

    def _same_template(self, key: str, before: Any, now: Any) -> bool:
        """Whether these are names of files of which the contents decide."""
        return key == TEMPLATE_KEY and TEMPLATE in self.identity and not {PAPER, CHAT} & {before, now}

    def has_begun(self, folder: Path) -> bool:
        """Whether anything was computed here that is kept: what failed before has only written down what it was."""
        return bool(self.results) or any(path.is_file() for path in (folder / SEARCH_FOLDER).rglob("*"))

    def start_anew(self) -> None:
        """Become another fit, with an MLflow run of its own: what was begun has computed nothing."""
        self.fit_id, self.mlflow_run_id, self.identity, self.accepted = uuid.uuid4().hex, None, {}, []

    def check_same_config(self, config: Mapping[str, Any], folder: Path) -> None:
        """Raise UserError naming each key in which `config` differs from the one this folder was begun with."""
        if not self.has_begun(folder):
            return
        problems = [
            f"{key} was {before!r} when {folder} was started and is now {now!r}."
            for key, (before, now) in self.changes(config).items()
        ]
        if problems:
            ways_out = (
                "to continue that run give the former values, or --allow-changes to go on with the new ones; "
                f"to start a new one give another name= or trainer.default_root_dir=, or delete {folder}."
            )
            raise UserError(*problems, ways_out)


def _use_current_roles(config: dict[str, Any]) -> None:
    """A search that a former version began names its roles as that version did."""
    architecture = config.get("architecture", {})
    if "kinds" in architecture:
        architecture["kinds"] = [current_role(kind) for kind in architecture["kinds"]]


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of what makes a config another experiment: not where it runs, nor what is done afterwards."""
    others = OTHERS if _samples_text(config) else (*OTHERS, SELF_TEXT)
    values = {k: v for k, v in flatten(config).items() if k not in PLACEMENT | AFTERWARDS and not k.startswith(others)}
    values |= {k: former for k, former in FORMER_DEFAULTS.items() if values.get(k, former) is None}
    if values.get(TEACHER_KEY) is None:
        values = {k: v for k, v in values.items() if not k.startswith(DISTILLATION)}
    if values.get(OBJECTIVE_KEY) != DPO:
        values = {k: v for k, v in values.items() if not k.startswith(PREFERENCES)}
    former = {**dict.fromkeys(ADDED_KEYS), **ADDED_VALUES}
    return {k: v for k, v in values.items() if k not in former or v != former[k]}


def _samples_text(config: Mapping[str, Any]) -> bool:
    data = config.get("data", {})
    entries = [entry["source"] for entry in data.get("sources") or []]
    return SELF in (data.get("source"), *(data.get("further_sources") or []), *entries)


def key_of(config: Mapping[str, Any]) -> str:
    """Identifies what a fit with this plain config computes, whatever its name and folder."""
    computed = {key: value for key, value in compared(config).items() if key not in OWN_KEYS}
    if ROLES_KEY in computed:  # by the names that roles had first, so that runs of every version are found
        computed[ROLES_KEY] = [former_role(kind) for kind in computed[ROLES_KEY]]
    return hashlib.sha256(json.dumps(computed, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_free(folder: Path) -> None:
    """Check that no other process works in a run folder, which need not be there. Raises UserError as `exclusive`."""
    if (folder / LOCK_NAME).exists():
        with exclusive(folder):
            pass


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the kernel releases it even when the process is killed.

    Raises:
        UserError: another process is working in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another fit is running in {folder}; wait for it, or give this one another name= "
                "or trainer.default_root_dir=."
            ) from error
        yield
