"""What this machine offers for training."""
