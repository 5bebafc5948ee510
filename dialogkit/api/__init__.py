"""The Python interface: what scripts and notebooks call, and how it speaks to them."""
