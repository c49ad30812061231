"""What `loadspan check` finds, asked of this machine or read from a captured one: data with documented fields, and what is suspicious."""
