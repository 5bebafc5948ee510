"""The processes of one training: who they are, how they start, meet, agree and end."""
