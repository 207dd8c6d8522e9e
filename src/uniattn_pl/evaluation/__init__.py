"""The quality of a model: held-out loss, benchmark tasks, long texts and needles in them."""
