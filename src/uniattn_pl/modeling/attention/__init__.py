"""The operated attentions, one file per role, and what layers publish for each other."""
