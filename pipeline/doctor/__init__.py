"""What a machine and a cluster offer, and whether a run would work there: probes, decisions, and a report."""
