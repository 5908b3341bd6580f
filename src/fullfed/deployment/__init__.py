"""A federation across organisations: its folders, identities, processes and commands."""
