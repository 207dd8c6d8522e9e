"""The subject of an evaluation: the model of a run, a model folder, or a source such as a hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.source_paths import looks_like_path
from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import MODELS, no_such_model
from uniattn_pl.resilience.manifest import FILE_NAME
from uniattn_pl.run_folder import FINAL, has_model, model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Subject:
    """A model to evaluate, not loaded yet.

    Attributes:
        folder: the model folder, or None for a source.
        source: what `load_model` takes, or None for a folder.
        run: the run folder that the model is of, if any.
    """

    folder: Path | None
    source: str | None
    run: Path | None

    def __str__(self) -> str:
        return str(self.folder or self.source)

    def identity(self, loaded: LoadedConfig) -> dict[str, Any]:
        """Data that tell this model from others without loading it: its contents, and how it is loaded.

        Raises:
            UserError: there is no such model, or a file of it cannot be read.
        """
        from uniattn_pl.modeling.loading.model_contents import measured_contents, model_contents
        from uniattn_pl.modeling.loading.model_places import local_place

        model = loaded.config.model
        options: dict[str, Any] = {"reuse": model.reuse}
        if self.folder is None:
            options |= {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
        place = self.folder or local_place(str(self.source))
        if place is not None and place.is_dir():
            return options | {"contents": measured_contents(place).digest}
        contents = model_contents(str(self.source), self._revision(loaded))
        known = {} if contents is None else {"contents": contents.digest}
        return options | {"source": self.source, "revision": model.revision} | known

    def _revision(self, loaded: LoadedConfig) -> str | None:
        """The commit of a hub's model, so that all of an evaluation measures one; as configured where none is known."""
        from uniattn_pl.modeling.loading.model_contents import hub_commit
        from uniattn_pl.modeling.loading.model_places import local_place

        model, source = loaded.config.model, str(self.source)
        if self.folder is not None or local_place(source) is not None:
            return model.revision
        return hub_commit(source, model.revision, model.trust_remote_code) or model.revision

    def load(self, loaded: LoadedConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, on the device of the experiment's trainer, and its tokenizer.

        Raises:
            UserError: as `load_model` and `load_folder`.
        """
        from uniattn_pl.inference.device import trainer_device
        from uniattn_pl.kernels.kernel_presence import check_kernel
        from uniattn_pl.kernels.triton_maps.availability import check_reuse_mode
        from uniattn_pl.modeling.loading.pretrained import (
            load_folder,
            load_folder_tokenizer,
            load_model,
            load_tokenizer,
        )

        config, device = loaded.config.model, trainer_device(loaded.config)
        check_reuse_mode(config.reuse, device)
        if self.folder is not None:
            model, tokenizer = load_folder(self.folder), load_folder_tokenizer(self.folder)
        else:
            source = str(self.source)
            origin: dict[str, Any] = {
                "revision": self._revision(loaded),
                "trust_remote_code": config.trust_remote_code,
            }
            kernel = config.attn_implementation
            check_kernel(kernel, device=device)
            model = load_model(source, dtype=config.dtype, attn_implementation=kernel, **origin)
            tokenizer = load_tokenizer(source, **origin)
        if hasattr(model.config, "reuse_mode"):
            model.config.reuse_mode, model.config.map_memory_mib = config.reuse, config.map_memory_mib
        return model.to(device), tokenizer  # type: ignore[arg-type]

    def load_tokenizer(self, loaded: LoadedConfig) -> PreTrainedTokenizerBase:
        """The tokenizer alone. Raises UserError as `load`."""
        from uniattn_pl.modeling.loading.pretrained import load_folder_tokenizer, load_tokenizer

        if self.folder is not None:
            return load_folder_tokenizer(self.folder)
        trust = loaded.config.model.trust_remote_code
        return load_tokenizer(str(self.source), revision=self._revision(loaded), trust_remote_code=trust)


def find_subject(name: str | None, loaded: LoadedConfig) -> Subject:
    """Find the model that `--from` names; by default the finished fit in the run folder, else the config's model.

    Raises:
        UserError: there is no such folder or name, the folder holds no model, or the config's fit is not finished.
    """
    if name is None:
        root = Path(loaded.config.trainer.default_root_dir)
        if has_model(root / FINAL):
            return _in_folder(root)
        if (root / FILE_NAME).is_file():
            raise UserError(
                f"the fit in '{root}' is not finished; finish it, or name what to evaluate, as in "
                f"--from {loaded.config.model.source}."
            )
        return Subject(None, loaded.config.model.source, None)
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file() and path.suffix == ".gguf":
        return Subject(None, name, None)
    if "/" not in name and name not in MODELS:
        raise UserError(f"--from: {no_such_model(name)}")
    if looks_like_path(name, (".gguf",)) or ("/" in name and path.parent.is_dir()):
        model_folder(path)  # says what there is instead
    return Subject(None, name, None)


def _in_folder(path: Path) -> Subject:
    folder = model_folder(path)
    root = folder.parent if folder.name == FINAL else folder
    return Subject(folder, None, root if (root / FILE_NAME).is_file() else None)
