"""Obtaining public data: the index of the Imaging Data Commons, plans of what to fetch, resumable downloads."""
