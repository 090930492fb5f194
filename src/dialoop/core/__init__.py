"""What every part stands on: schema, job files, errors, events, files, environment, device."""
