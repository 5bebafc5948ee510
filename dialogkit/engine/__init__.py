"""The training engine: device, attention, loss and callbacks around HF Trainer."""
