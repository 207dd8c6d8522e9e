"""One module per command: `DESCRIPTION`, `EXAMPLE`, `add_arguments(parser)` and `run(args) -> int`.

`EXTRA` names the extra of the package that all of a command needs, where it needs one; `SHOWS_TABLES = True` adds
`--wide`, by which tables do not keep to the terminal's width.

A command imports torch and its friends inside functions, so that its help answers at once.
"""

COMMANDS = {
    "fit": "convert a model, calibrate, post-train in two stages and report what was lost and saved",
    "plan": "draw which layer uses whose attention, and what that costs",
    "analyze": "measure attention maps, importance, depth and what compensation repairs",
    "bench": "measure time to first token, time per token, memory and cache of several architectures side by side",
    "evaluate": "score a model on benchmark tasks, held-out rows, long text and retrieval",
    "sweep": "run an experiment at many settings, in several processes, and compare them in one table",
    "report": "write a sweep's runs in MLflow as tables and figures, with what is missing and how to get it",
    "list": "list architectures, families, models, initialisers, engines or the keys of a config",
    "generate": "generate text with a post-trained model",
    "serve": "serve a post-trained model with an OpenAI-compatible API",
    "export": "write a run's model as a folder, a GGUF file or graphs, for others to load",
    "data": "build the files of rows that shipped experiments read, from the hub",
    "completion": "print what lets bash or zsh complete commands, options and keys of a config",
}
