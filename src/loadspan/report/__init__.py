"""The reading side: trace files to waterfalls. Never imports `loadspan.instrument`, torch or the SDK."""
