"""Two-stage post-training with Lightning: the fit from top to bottom, the LightningModule, the callbacks."""
