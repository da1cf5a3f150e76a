"""The engine of all studies: arms, training, tuning, rollouts, statistics, folders and reports."""
