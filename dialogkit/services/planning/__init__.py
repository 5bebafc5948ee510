"""What a plan is made of: runs that were measured, the speed of this machine, and the forecast from both."""
