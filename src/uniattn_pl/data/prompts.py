"""The paper's prompt: Stanford Alpaca's template, word for word (paper Appendix A)."""

from __future__ import annotations

PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
PROMPT_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def format_prompt(instruction: str, input: str = "") -> str:
    """Return the text that precedes the response, at training and at generation alike.

    A row without an instruction keeps the instruction field empty, as in the paper; a row without an input
    takes Alpaca's variant that does not mention one.
    """
    template = PROMPT_WITH_INPUT if input.strip() else PROMPT_NO_INPUT
    return template.format(instruction=instruction, input=input)
