"""Encrypted inference of one ResNet-18 by other systems and by this one, on the same cores."""
