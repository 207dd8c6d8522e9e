"""What is generated on the pages of docs/architectures: picture, costs and options of each, and the table of all."""

from __future__ import annotations

import re
from pathlib import Path

from tools.pages.examples import EXAMPLES, LENGTHS, ROOT, SMALL, Example, shape
from tools.pages.measured import measured
from uniattn_pl.architectures import get_architecture
from uniattn_pl.config.option_reference import find_sections
from uniattn_pl.config.reference_page import option_table
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.cost_ratio import Cost
from uniattn_pl.plan.costs import parameters
from uniattn_pl.plan.roles import KEY, KEYS, OUTPUT, QUERY, ROLES, VALUE, VALUES

FOLDER = ROOT / "docs" / "architectures"
BEGIN, END = "<!-- made by `make pages`, from here -->", "<!-- to here -->"
COLUMNS = ("KV cache", "FLOPs of a prompt", "bytes read per token", "parameters")


def pages() -> dict[Path, str]:
    """Every page as it should be: what is written in it, and what is generated between its marks."""
    parts = {FOLDER / f"{name}.md": [_generated(name, example), measured(name)] for name, example in EXAMPLES.items()}
    parts[FOLDER / "index.md"] = [_overview()]
    parts[ROOT / "docs" / "concepts" / "roles.md"] = [_roles_table()]
    return {page: _filled(page, texts) for page, texts in parts.items()}


def _filled(page: Path, texts: list[str]) -> str:
    """The page with these texts between its pairs of marks.

    Raises:
        ValueError: it has more or fewer of them.
    """
    written = re.split(f"{re.escape(BEGIN)}.*?{re.escape(END)}", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    between = [f"{BEGIN}\n\n{text}\n\n{END}" for text in texts]
    return "".join(part for pair in zip(written, [*between, ""], strict=True) for part in pair)


def _generated(name: str, example: Example) -> str:
    options_given = ", ".join(f"{key}: {value}" for key, value in {"name": name, **example.options}.items())
    (section,) = find_sections(f"architecture.{name}")
    options = option_table(section) if section.keys else "It has no options."
    return "\n\n".join(
        [
            f"![Plan of {name} on SmolLM2-135M](../figures/plans/{name}.svg)",
            f"On SmolLM2-135M: {example.caption} ([how to read it](index.md#how-to-read-the-pictures)).",
            f"```yaml\narchitecture: {{{options_given}}}\n```",
            "Cost by the plan, of the unmodified model's:",
            _table(("of", *COLUMNS), [(model, *_costs(name, example, model)) for model in example.models]),
            "Options:",
            options,
        ]
    )


def _overview() -> str:
    rows = []
    for name, example in EXAMPLES.items():
        kind = get_architecture(name)
        costs = _costs(name, example, SMALL)
        rows.append((f"[`{name}`]({name}.md)", kind.summary, _roles(example.plan(name, shape(SMALL))), *costs))
    return _table(("architecture", "what it does", "layers of the example", *COLUMNS), rows)


def _roles_table() -> str:
    rows = []
    for name, role in ROLES.items():
        kept = ", ".join(f"`W_{part[0]}`" for part in (QUERY, KEY, VALUE, OUTPUT) if part in role.projections)
        caches = ", ".join(part for part in (KEYS, VALUES) if part in role.caches)
        rows.append((f"[`{name}`](#{name})", role.summary, kept or "-", str(role.products), caches or "-"))
    return _table(("role", "a layer of it", "keeps", "products per pair", "caches"), rows)


def _roles(plan: LayerPlan) -> str:
    changed = [row.role for row in plan.rows if row.operated]
    return ", ".join(f"{changed.count(role)} `{role}`" for role in dict.fromkeys(changed)) or "none changed"


def _costs(name: str, example: Example, model: str) -> tuple[str, ...]:
    """KV cache, FLOPs of a prompt, bytes read per token and parameters, relative to the unmodified model's."""
    of: ModelShape = shape(model)
    plan = example.plan(name, of)
    plan.check(of)
    kinds = ("kv_bytes", "prefill_flops", "decode_bytes")
    ratios = [Cost(kind, LENGTHS[model]).ratio(plan, of) for kind in kinds]
    ratios.append(parameters(plan, of) / parameters(LayerPlan.stock(of), of))
    return tuple(f"{100 * ratio:.1f} %" for ratio in ratios)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
