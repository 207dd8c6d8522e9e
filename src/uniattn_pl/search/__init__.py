"""Choosing by measurement what each layer's attention becomes."""
