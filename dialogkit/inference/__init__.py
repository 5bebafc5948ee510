"""Replies and likelihoods of a trained model."""
