"""What the machine, its files and its network offer; knows nothing about dialogs or models."""
