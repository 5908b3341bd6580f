"""What carries messages between a server and its clients."""
