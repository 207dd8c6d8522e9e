"""`uniattn_pl.fit`: what `uniattn-pl fit` does, from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.config import load_config
from uniattn_pl.extras import require_extra
from uniattn_pl.run_folder import check_run_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from uniattn_pl.tracking.fit_result import FitResult


@dataclass(frozen=True)
class FinishedFit:
    """A finished fit; prints as its final table.

    Attributes:
        result: all that was measured: milestones, cache, stages, the MLflow run.
    """

    result: FitResult

    @property
    def folder(self) -> Path:
        """The run folder, with the manifest and every model folder."""
        return self.result.run_folder

    @property
    def model_folder(self) -> Path:
        """The final model, an ordinary Hugging Face folder."""
        return self.result.model_folder

    @property
    def losses(self) -> dict[str, float]:
        """Held-out loss (nats per response token) by milestone, in order: `original`, ..., `after stage 2`."""
        return {milestone.label: milestone.response_loss for milestone in self.result.milestones}

    def load_model(self, **options: Any) -> PreTrainedModel:
        """Load the final model, in the dtype it was saved in; `options` as of `load_folder`."""
        from uniattn_pl.modeling.loading.pretrained import load_folder

        return load_folder(self.model_folder, **options)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer that was saved with it."""
        from uniattn_pl.modeling.loading.pretrained import load_folder_tokenizer

        return load_folder_tokenizer(self.model_folder)

    def __str__(self) -> str:
        from uniattn_pl.tracking.final_table import as_text, final_table

        return as_text(final_table(self.result))


def fit(
    config: str | Path | Mapping[str, Any] | None = None, *, allow_changes: bool = False, **values: Any
) -> FinishedFit:
    """Run an experiment as `uniattn-pl fit` does, or the rest of a killed one; a finished one is only read again.

    Args:
        config: an experiment file, the name of one that comes with the package ("quickstart"), or its contents as a
            dictionary. Default: all defaults.
        allow_changes: go on in a run folder that another config, other rows or another model was begun in.
        values: keys that win over the config: whole names of sections with dictionaries
            (`training={"batch_size": 8}`), or dotted keys (`**{"training.batch_size": 8}`).

    Raises:
        UserError: with every problem of the config, or the run cannot be started.
        TrainingDivergedError: the loss or a gradient became NaN or infinite, or exploded.
        RunFailure: something outside of this program, such as room on the disk, ended it.
    """
    require_extra("training", "fit")
    loaded = load_config([*([] if config is None else [config]), *([values] if values else [])])
    check_run_folder(Path(loaded.config.trainer.default_root_dir))
    from uniattn_pl.training.fit import fit as run

    return FinishedFit(run(loaded, allow_changes=allow_changes))
