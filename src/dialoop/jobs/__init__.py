"""Jobs: every verb in one table, and the jobs that belong to no capability."""
