"""The main job on one machine, end to end: data, tuning, evaluation, merging, serving."""
