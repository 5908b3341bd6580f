"""A federation across organisations, on Flower: its folders, processes, app and commands."""

# What Flower's configurations call ...
RUN = "run"  # a run's folder
WORKER = "worker"  # the file in which a node's worker says how to reach it
