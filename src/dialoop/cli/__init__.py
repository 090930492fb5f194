"""The command line: verbs, flags and help made from the job specs; the only package that prints."""
