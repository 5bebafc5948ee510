"""What this machine offers to a training."""
