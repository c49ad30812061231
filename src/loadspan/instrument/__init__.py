"""The recording side: wraps host functions and turns calls into spans. Never imports `loadspan.report`."""
