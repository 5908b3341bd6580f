"""A federation across organisations: its server, nodes, folders, identities and commands."""
