"""Federated learning: what hospitals, the model owner and the crypto provider do."""
