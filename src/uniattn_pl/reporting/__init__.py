"""Reports: the runs of a sweep, read from MLflow and written as tables and figures."""
