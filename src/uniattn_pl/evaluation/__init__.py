"""What a model is worth: held-out loss, benchmark tasks, long texts and needles in them."""
