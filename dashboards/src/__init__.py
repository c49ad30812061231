"""The boards as code: `python dashboards/generate.py` writes what is in `dashboards/boards`."""
