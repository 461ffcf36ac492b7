"""Who does the units of work: this process, processes of this machine, or a Ray cluster."""
