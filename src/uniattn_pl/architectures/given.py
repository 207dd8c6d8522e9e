"""A plan from a file, such as a point of a search's frontier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.file_contents import read_json_object
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError


@register
@dataclass
class Given(Architecture):
    """Exactly the plan in a JSON file, as `plan` and `search` write them."""

    name = "given"
    summary = "the layer plan in a JSON file"

    plan: str = option("", "the file, relative to the working folder", path=True)

    def compile(self, shape: ModelShape) -> LayerPlan:
        path = Path(self.plan)
        if not self.plan or not path.is_file():
            raise PlanError(f"given needs plan: a JSON file with a layer plan; there is no file '{self.plan}'.")
        data = read_json_object(path)
        try:
            return LayerPlan.from_dict(data)
        except PlanError as error:
            raise PlanError(*(f"in '{path}': {problem}" for problem in error.problems)) from error
