"""Training on several processes and machines: jobs for clusters, and the local launcher."""
