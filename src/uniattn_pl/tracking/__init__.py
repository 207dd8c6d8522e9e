"""MLflow runs, plots, tables and the record of the environment."""
