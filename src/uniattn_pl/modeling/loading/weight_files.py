"""A cheap look at a model folder before it is loaded: its config, and the header of every file of weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.file_contents import mistaken_content, read_json_object
from uniattn_pl.modeling.loading.adapter_folder import base_folder, is_adapter
from uniattn_pl.modeling.loading.safe_folders import WEIGHTS, no_safetensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
WEIGHT_FILES = (WEIGHTS, f"{WEIGHTS}.index.json")
PICKLED = ("*.bin", "*.bin.index.json", "*.pt", "*.pth")
_BESIDE = "weights are read from .safetensors files beside it only."
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
LARGEST_SIZE = {"num_hidden_layers": 10_000}  # a slip in the number of layers would be built for hours
LARGEST = 2**31
UNUSED_SIZE = 2**15


def check_weight_files(folder: Path, *, quantizations: Collection[str] = ()) -> None:
    """Check everything of a model folder that can be checked without reading its weights; milliseconds a file.

    Args:
        folder: a transformers model folder.
        quantizations: methods of quantised checkpoints that the caller can use (`bitsandbytes`); default: none.

    Raises:
        UserError: config.json is no model's, the weights are quantised, their index is broken or names files
            elsewhere, or a file of weights is missing, cut off, or something else under its name.
    """
    config = check_config(folder)
    _check_quantization(folder, config, quantizations)
    found = [_look_at(file, names) for file, names in _files(folder, config)]
    problems = [look.problem for look in found if look.problem]
    if problems:
        raise UserError(*problems)
    _check_sizes(folder, config, max(look.largest for look in found), sum(look.weights for look in found))


def check_adapter(folder: Path) -> Path:
    """The base model's folder of a peft adapter.

    Raises:
        UserError: the adapter's config is broken, its weights are not in safetensors, damaged or cut off, or its base
            is not there.
    """
    base = base_folder(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(no_safetensors(folder, ADAPTER_WEIGHTS))
    if problem := _look_at(folder / ADAPTER_WEIGHTS, []).problem:
        raise UserError(problem)
    return base


def checked_base(folder: Path) -> Path:
    """The folder that a folder's model is built on: the base of an adapter, checked as `check_adapter`, else itself."""
    return check_adapter(folder) if is_adapter(folder) else folder


def check_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's config.json and check its model type and its sizes.

    Raises:
        UserError: it is no JSON object, names no model type that transformers knows, or has sizes no model can have.
    """
    path = folder / "config.json"
    config = read_json_object(path)
    problems = [*_type_problems(config)]
    for name, part in (("", config), *((f"{key}.", value) for key, value in config.items() if key == "text_config")):
        if isinstance(part, dict):
            problems += [f"{name}{key} is {part[key]!r}; {needed}" for key, needed in _wrong_sizes(part)]
    if problems:
        raise UserError(*(f"'{path}': {problem}" for problem in problems))
    return config


def _type_problems(config: dict[str, Any]) -> Iterator[str]:
    from transformers import CONFIG_MAPPING

    from uniattn_pl.families.inspection import MODEL_TYPE_PREFIX

    if "model_type" not in config:
        yield 'it has no model_type, which says what kind of model this is, for example "model_type": "llama".'
        return
    name = config["model_type"]
    if not isinstance(name, str):
        yield f'model_type is {name!r}; it must be a string such as "llama".'
    elif name.removeprefix(MODEL_TYPE_PREFIX) not in CONFIG_MAPPING and "auto_map" not in config:
        from transformers import __version__

        near = did_you_mean(name, CONFIG_MAPPING)
        yield f"transformers {__version__} knows no model type '{name}'.{near} A newer transformers may know it."


def _wrong_sizes(part: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Sizes that no model has, each with what is needed; lists (a size per layer) are left to the family."""
    for key in SIZES:
        value, most = part.get(key), LARGEST_SIZE.get(key, LARGEST)
        if value is None or isinstance(value, list):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            yield key, f"it must be a whole number from 1 to {most}."


def _check_quantization(folder: Path, config: dict[str, Any], usable: Collection[str]) -> None:
    quantization = config.get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if not isinstance(method, str):
        raise UserError(
            f"'{folder / 'config.json'}': quantization_config names no quant_method; where the weights are not "
            "quantised, remove that key."
        )
    if method not in usable:
        bits = f", {quantization['bits']} bits" if isinstance(quantization.get("bits"), int) else ""
        raise UserError(
            f"the weights in '{folder}' are quantised ({method}{bits}), which cannot be converted or trained; use the "
            "model they were made from, in bfloat16, float16 or float32."
        )


def _check_sizes(folder: Path, config: dict[str, Any], largest: int, weights: int) -> None:
    """Refuse sizes that are not of these weights before they are built: transformers compares them afterwards."""
    part = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert part is not None
    # Models whose feed-forwards are all experts have an intermediate_size of no use, often their family's default.
    feed_forward = max(largest, UNUSED_SIZE)
    most = {"hidden_size": largest, "vocab_size": largest, "intermediate_size": feed_forward}
    most["num_hidden_layers"] = weights
    for key, bound in most.items():
        if isinstance(part.get(key), int) and part[key] > bound:
            has = f"only {weights} tensors" if key == "num_hidden_layers" else f"no side longer than {largest}"
            raise UserError(f"'{folder / 'config.json'}': {key} is {part[key]}, but the weights beside it have {has}.")


def _files(folder: Path, config: dict[str, Any]) -> Iterator[tuple[Path, list[str]]]:
    """Each file of weights and the names that the index says are in it, chosen as transformers chooses."""
    given = config.get("transformers_weights")
    if given is not None and not _is_name(given, (".safetensors", INDEX_SUFFIX)):
        raise UserError(f"'{folder / 'config.json'}' names '{given}'; {_BESIDE}")
    candidates = WEIGHT_FILES if given is None else (given,)
    found = [folder / name for name in candidates if (folder / name).is_file() or (folder / name).is_symlink()]
    if not found:
        if any(True for pattern in PICKLED for _ in folder.glob(pattern)):
            raise UserError(no_safetensors(folder, candidates[0]))
        raise UserError(f"'{folder}' has no weights: there is no {' and no '.join(candidates)} in it.")
    # All indexes are looked at, whichever is used: none may lead out of the folder.
    by_index = {index: _weight_map(index) for index in sorted(folder.glob(f"*{INDEX_SUFFIX}"))}
    if found[0] not in by_index:
        yield found[0], []
        return
    by_file: dict[str, list[str]] = {}
    for name, file in by_index[found[0]].items():
        by_file.setdefault(file, []).append(name)
    for file in sorted(by_file):
        yield folder / file, by_file[file]


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each weight. Raises UserError unless the index is whole and names files beside it only."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"'{index}' has no weight_map, which says which file holds which weight.")
    for file in weight_map.values():
        if not _is_name(file, (".safetensors",)):
            raise UserError(f"'{index}' names '{file}'; {_BESIDE}")
    return weight_map


def _is_name(name: object, suffixes: tuple[str, ...]) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(suffixes)


@dataclass(frozen=True)
class _Look:
    """What the header of a file of weights says: what is wrong, the longest side of a weight, how many there are."""

    problem: str = ""
    largest: int = 0
    weights: int = 0


def _look_at(file: Path, names: list[str]) -> _Look:
    from safetensors import SafetensorError, safe_open

    if not file.exists() and not file.is_symlink():
        near = did_you_mean(file.name, [path.name for path in file.parent.glob("*.safetensors")])
        return _Look(f"'{file}' is not there, though the index beside it names it; download it again.{near}")
    try:
        if mistaken := mistaken_content(file):
            return _Look(f"'{file}'{mistaken}")
        with safe_open(file, framework="numpy") as opened:
            sides = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except UserError as error:
        return _Look(str(error))
    # safetensors raises its own error for a header or a length that is wrong, OSError where it cannot map the file.
    except (SafetensorError, OSError) as error:
        return _Look(f"'{file}' is damaged or cut off at {file.stat().st_size:,} bytes ({error}); download it again.")
    missing = sorted(set(names) - set(sides))
    if missing:
        return _Look(f"'{file}' lacks '{missing[0]}', which the index beside it says is in it.")
    return _Look(largest=max((side for shape in sides.values() for side in shape), default=0), weights=len(sides))
