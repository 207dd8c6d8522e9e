"""How one YAML value is read and written: as people mean it, which is YAML 1.2, not PyYAML's 1.1.

`012` is twelve and not ten, `1:30` and `2024-01-01` are text, `no` is text where text is expected and false where
true or false is (`config/typing_rules.py`). A key that stands twice in a mapping is an error.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_LONGEST_NUMBER = 400  # digits; Python refuses to read integers of more than 4,300, and floats end at 309
# What composing and constructing raise: besides YAMLError those of values under explicit tags (`!!float x`, `!!bool x`,
# `!!float ''`, `!!timestamp x`), and RecursionError of a thousand open brackets.
UNREADABLE = (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, RecursionError)


class Loader(yaml.SafeLoader):
    """A safe loader of YAML 1.2's numbers and words; a mapping's key may stand only once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        for first, again in repeated_keys(node):
            problem = f"'{again.value}' is set twice, first on line {first.start_mark.line + 1}"
            raise yaml.constructor.ConstructorError(None, None, problem, again.start_mark)
        return super().construct_mapping(node, deep=deep)


class Dumper(yaml.SafeDumper):
    """The counterpart of `Loader`: quotes text that it would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_value(value: Any) -> str:
    """Write a value as YAML on one line, so that `parse_value` reads the same value back."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=float("inf"), allow_unicode=False)
    return str(text).removesuffix("\n").removesuffix("\n...").strip()


def parse_value(text: str) -> Any:
    """Read one YAML value, as after `key=`; text that is not YAML stays text."""
    try:
        return yaml.load(text, Loader=Loader)
    except UNREADABLE:
        return text


def repeated_keys(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    """The keys of a mapping that stand twice: the first, and the one that repeats it; `<<` may be overridden."""
    first: dict[Any, yaml.Node] = {}
    repeated = []
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if (
            isinstance(key, yaml.ScalarNode)
            and key.tag != f"{_TAG}merge"
            and first.setdefault(key.value, key) is not key
        ):
            repeated.append((first[key.value], key))
    return repeated


def _whole_number(loader: Loader, node: Any) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    digits = text.lstrip("+-")
    if len(digits) > _LONGEST_NUMBER:
        problem = f"a number of {len(digits):,} digits cannot be read"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    try:
        return int(text, 16 if digits[:2] == "0x" else 10)
    except ValueError as error:  # `!!int word`
        raise yaml.constructor.ConstructorError(None, None, f"'{text}' is no number", node.start_mark) from error


_SCALARS = {
    "int": (r"[-+]?(?:0x[0-9a-fA-F]+|[0-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
}
for _class in (Loader, Dumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}null", f"{_TAG}merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _name, (_pattern, _first) in _SCALARS.items():
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), list(_first))
Loader.add_constructor(f"{_TAG}int", _whole_number)
