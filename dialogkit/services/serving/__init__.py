"""A server for models: what it is asked, who replies, and how it answers."""
