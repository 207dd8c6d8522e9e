"""One experiment at many settings: its points, the ledger that all workers use, and the tables they print."""
