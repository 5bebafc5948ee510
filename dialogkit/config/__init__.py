"""Settings: frozen pydantic sections, and the one loader that merges them. Imports no heavy library."""
