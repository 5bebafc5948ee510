"""Imports what every run imports."""

import gc

import torch
import transformers.integrations
import wandb.sdk.launch
from transformers import Trainer

import dialogkit.engine.fit
import dialogkit.inference.likelihood
import dialogkit.inference.replies
import dialogkit.models.build
import dialogkit.services.train

__all__ = ["Trainer", "dialogkit", "torch", "transformers", "wandb"]

gc.freeze()  # each run calls the collector at its end: it need not look through the libraries
