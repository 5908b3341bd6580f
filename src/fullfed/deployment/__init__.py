"""A federation across organisations, on Flower: its folders, processes, app and commands."""

RUN = "run"  # the key under which Flower's configuration of a run names the run's folder
