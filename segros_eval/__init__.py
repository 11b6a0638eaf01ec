"""SeGroS: evaluation, leaderboards and the command line."""
