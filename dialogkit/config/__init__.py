"""Settings: frozen pydantic sections and the loader that merges them. Imports no heavy library."""
