"""Data: records of files and hubs, worded, tokenised, divided among clients."""
