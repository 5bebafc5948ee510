"""What the machine, its files and its network offer; knows nothing of dialogs or models."""
