"""`list families`: which family can have which role, and what can be made of one model."""

from __future__ import annotations

from importlib.metadata import version

from uniattn_pl.display.text_table import print_table, print_text
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.conversion.family_support import kept_support

JUDGED = {
    True: "Judged from its config: a small model of random weights with the same layers and options was converted and "
    "run; no weights were read.",
    False: "Judged from its config alone: no small model of its kind can be made. It is probed with its weights when "
    "it is converted, and may be refused then.",
}


def print_families() -> None:
    """What every tested family can have, as it was found by trying, and which architecture makes which layers."""
    found = kept_support()
    families = found["families"]
    roles = list(next(iter(families.values()))["roles"])
    rows, reasons = [], []
    for family, of_family in families.items():
        verdicts = [of_family["roles"][role] for role in roles]
        rows.append(
            (
                family,
                of_family["models"],
                ", ".join(of_family["kernels"]),
                of_family["windows"],
                *(verdict for verdict, _ in verdicts),
            )
        )
        for role, (_, reason) in of_family["roles"].items():
            if reason:
                words = reason.removeprefix(f"model type '{family}': ")
                reasons.append(f"  {family}, {role}: {words}")
    columns = ("model type", "models", "kernels", "windows", *roles)
    print_table("Tested model families, and the roles that their layers can have", columns, rows)
    if reasons:
        print("\nWhy not all:")
        for reason in reasons:
            print_text(reason, indent="    ")
    made = [
        (name, "as it measures" if of is None else ", ".join(of) or "none")
        for name, of in found["architectures"].items()
    ]
    print()
    print_table("Architectures, and the roles that they give to layers", ("architecture", "roles"), made)
    if found["transformers"] != version("transformers"):
        print(f"\nFound with transformers {found['transformers']}; installed is {version('transformers')}.")
    print()
    print_text(
        "Found on small models with the families' default options. Other families are inspected and probed when "
        "they are converted, and refused with the reason: list families --model NAME says what can be made of a model."
    )


def print_possibilities(source: str) -> None:
    """What can be made of one model, and why not the rest. Raises UserError when there is no such model."""
    from uniattn_pl.families.inspection import ENCODER_DECODERS, FAMILIES, stock_model_type
    from uniattn_pl.modeling.conversion.possibilities import possibilities
    from uniattn_pl.modeling.loading.pretrained import load_model_config

    config = load_model_config(source)
    try:
        found = possibilities(config)
    except UserError as refusal:
        print(f"{source}: no plan is possible.\n  " + "\n  ".join(refusal.problems))
        return
    types = {stock_model_type(config.get_text_config()), found.model_type}
    tested = "a tested family" if types & {*FAMILIES, *ENCODER_DECODERS} else "not among the tested families"
    rows = [(name, possible.verdict, possible.reason) for name, possible in found.roles.items()]
    print_table(f"{source}: model type '{found.model_type}', {tested}", ("role", "possible", "why not"), rows)
    print()
    rows = [(name, possible.verdict, possible.reason) for name, possible in found.architectures.items()]
    print_table("Architectures, with their default options", ("architecture", "possible", "why not"), rows)
    print()
    print_text(JUDGED[found.ran])
