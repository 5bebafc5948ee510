"""What an inspection of a dataset returns, and what it remarks on."""
