"""Exact interventions, many at a time, computing only what an intervention can change."""
