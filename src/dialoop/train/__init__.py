"""Training: one loop, objectives and tuners as options, packed rows everywhere."""
