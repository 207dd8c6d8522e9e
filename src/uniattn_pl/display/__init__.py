"""What people look at while a command runs and when it ends: bars, tables, figures."""
