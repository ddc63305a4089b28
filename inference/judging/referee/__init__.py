"""Referees of a posterior's draws: chains that leave the posterior as it is."""
