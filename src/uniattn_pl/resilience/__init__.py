"""What makes a run survive: its manifest, checkpoints, signals, failures, ranks and files."""
