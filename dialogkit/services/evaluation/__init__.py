"""What an evaluation is made of."""
