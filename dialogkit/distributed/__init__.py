"""The ranks of a run: who they are, how they start, meet, agree and end."""
