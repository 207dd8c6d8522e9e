"""What Python code calls, in few words: calibrate a model, run a fit. `uniattn_pl` exports it (docs/api.md)."""
