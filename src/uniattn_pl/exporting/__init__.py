"""A run's model as something of its own: an ordinary folder, with or without the need for this package."""
