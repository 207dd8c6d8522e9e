"""One experiment at many settings: points, the ledger that workers share, and what they show."""
