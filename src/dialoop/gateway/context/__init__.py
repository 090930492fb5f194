"""Context: which messages of a long dialogue are sent to a model, within its real window."""
