"""Output for people, while a command runs and when it ends: bars, tables, figures."""
