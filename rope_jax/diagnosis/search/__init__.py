"""Factor lists learned on the probes."""
