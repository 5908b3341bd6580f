"""Before a run: what a recipe would do, checked and told without a trace."""
