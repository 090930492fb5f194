"""Several processes train one model: how ranks are laid out, started, and share the work."""
