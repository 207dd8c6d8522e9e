"""Two-stage post-training with Lightning: the module, the callbacks and the resumable runner."""
