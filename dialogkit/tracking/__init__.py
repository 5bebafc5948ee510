"""What a run leaves: its folder, its metrics, its W&B record. Only `wandb_run` imports wandb."""
