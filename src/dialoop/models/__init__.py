"""Models: named, fetched, loaded, adapted, merged and talked to."""
