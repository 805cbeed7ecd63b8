"""The control plane: settings, store, planner, loop, supervisor, telemetry."""
