"""A run: one recipe carried out into a folder, resumable, verifiable, exportable."""
