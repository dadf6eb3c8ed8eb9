"""Lockstep: hourly, daily and live numbers from one change log, that provably agree."""
