"""What training, search and evaluation minimise or measure: losses over the tokens that count."""
