"""The layers a calibration pass has solved, on disk, so that a killed pass need not solve them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from uniattn_pl.calibration.calibration_report import LayerError
from uniattn_pl.calibration.weights import Weights
from uniattn_pl.errors import UserError
from uniattn_pl.files import atomic_file
from uniattn_pl.plan import LayerPlan, PlanError

PASS_FILE = "pass.json"


@dataclass(frozen=True)
class SolvedLayer:
    """What calibration made of one layer: the error it reports, the weights, and the source heads it chose."""

    error: LayerError
    weights: Weights
    heads_from: tuple[int, ...] | None


class CalibrationRecord:
    """One safetensors file per solved layer in a folder that belongs to one pass.

    Args:
        folder: created when absent.
        options: of the pass, plain data.
        plan: of the converted model before the pass.
        batches: that are fitted, by all ranks together.
        writes: whether this rank does; the others only read what a killed pass has left.

    Raises:
        UserError: the folder has the layers of a pass with other options, plan or batches.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        plan: LayerPlan,
        batches: Sequence[Mapping[str, Tensor]],
        *,
        writes: bool = True,
    ) -> None:
        self.folder, self.writes = folder, writes
        about = {**options, "plan": plan.to_dict(), "batches": tokens_digest(batches)}
        file = folder / PASS_FILE
        if not file.exists():
            if writes:
                with atomic_file(file) as handle:
                    handle.write(json.dumps(about, indent=1).encode())
            return
        recorded, now = _current_form(json.loads(file.read_text(encoding="utf-8"))), json.loads(json.dumps(about))
        known = {key for key in now if None not in (now[key], recorded.get(key))}  # of a model, perhaps, nothing is
        changed = sorted(key for key in known if recorded[key] != now[key])
        if changed:
            raise UserError(
                f"{folder} belongs to a calibration with another {', '.join(changed)}; delete it to start a new one."
            )

    def save(self, solved: SolvedLayer) -> None:
        """Write one solved layer, atomically."""
        if not self.writes:
            return
        about = {"error": json.dumps(asdict(solved.error)), "heads_from": json.dumps(solved.heads_from)}
        weights = {name: weight.contiguous().cpu() for name, weight in solved.weights.items()}
        with atomic_file(self._file(solved.error.layer)) as handle:
            handle.write(save(weights, metadata=about))

    def load(self, layer: int) -> SolvedLayer | None:
        """What is known of a layer, or None."""
        if not self._file(layer).exists():
            return None
        with safe_open(self._file(layer), "pt") as file:
            about = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        if any(name.startswith("w_c.") for name in weights):  # former versions named them within the attention
            weights = {f"self_attn.{name}": weight for name, weight in weights.items()}
        heads = json.loads(about["heads_from"])
        return SolvedLayer(LayerError(**json.loads(about["error"])), weights, heads and tuple(heads))

    def _file(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:03d}.safetensors"


def _current_form(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a pass as this version writes them: its plan may have been saved in a former form."""
    try:
        plan = LayerPlan.from_dict(options["plan"]).to_dict()
    except (KeyError, PlanError):
        return options  # of something else
    return {**options, "plan": json.loads(json.dumps(plan))}


def tokens_digest(batches: Sequence[Mapping[str, Tensor]]) -> str:
    """Of the rows' tokens in order; how they are cut into padded batches depends on the ranks and changes nothing."""
    digest = hashlib.sha256()
    for batch in batches:
        for prefix in ("", "decoder_") if "decoder_input_ids" in batch else ("",):
            ids, masks = batch[f"{prefix}input_ids"].cpu(), batch[f"{prefix}attention_mask"].cpu()
            for tokens, mask in zip(ids, masks, strict=True):
                row = tokens[mask.bool()].numpy()
                digest.update(len(row).to_bytes(8) + row.tobytes())
    return digest.hexdigest()
