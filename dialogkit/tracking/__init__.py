"""What a run writes: its folder, its metrics, its W&B run. Only `wandb_run` imports wandb."""
